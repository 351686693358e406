"""What neurons mean: statistics over the memories of one store."""
