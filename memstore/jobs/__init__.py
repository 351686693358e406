"""Work that an OpenAI-compatible server does for us: the one room that knows the network."""
