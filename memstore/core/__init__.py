"""Pure numpy: vectors, traces, expressions, ranking. No files, SQL, network or torch."""
