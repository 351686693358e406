"""Every SQL statement of memstore. The catalog is the truth; all else can be rebuilt from it."""
