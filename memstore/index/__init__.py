"""Derived copies of the catalog that answer queries: disposable, never the truth.

An index is told what changed (traces or vectors of new and updated memories, ids of deleted ones)
and answers with ids and scores. It knows nothing of the catalog, and the catalog nothing of it.
"""
