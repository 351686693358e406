"""Text -> vector. Every embedder has ``dimension``, ``fingerprint`` and ``embed(texts)``."""
