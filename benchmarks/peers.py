"""The peers that benchmarks/index.py measures memstore against, one small class each.

All obey one contract (``Engine``), are fed the same batches and are set up as their documentation
advises for bulk loading, telemetry off. A query returns row numbers and scores only, so a peer is
never charged for fetching texts; databases store them all the same, indices do not (``holds``).
"""
# ruff: noqa: D102 - what the methods of an engine do is said once, in the contract

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Mapping
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from engine import DENSE, SPARSE, Batch, Engine, Float32, Found, need
from numpy.typing import NDArray


class QdrantEdge(Engine):
    """Qdrant in the process: HNSW with its defaults, an inverted index for the traces."""

    name, kinds, holds = "qdrant-edge", SPARSE | DENSE, "texts, vectors, traces"
    #: Points an upsert: the documentation's upper bound for a batch.
    PAGE = 256

    def __init__(self, folder: Path, width: int, dimension: int) -> None:
        self.q = q = need("qdrant_edge", "qdrant-edge-py")
        path = folder / "shard"
        if path.exists():
            self.shard = q.EdgeShard.load(str(path))
            return
        path.mkdir()
        vectors = None
        if dimension:
            vectors = {"dense": q.EdgeVectorParams(dimension, q.Distance.Cosine)}
        config = q.EdgeConfig(vectors, {"trace": q.EdgeSparseVectorParams()})
        self.shard = q.EdgeShard.create(str(path), config)
        self.shard.update(
            q.UpdateOperation.create_field_index("shade", q.PayloadSchemaType.Integer)
        )

    def insert(self, batch: Batch) -> None:
        q, shades = self.q, batch.shade.tolist()
        dense = None if batch.vectors is None else batch.vectors.tolist()
        neurons, values = batch.neurons.tolist(), batch.activations.tolist()
        points = []
        for row, (a, b) in enumerate(pairwise(batch.indptr.tolist())):
            vector = {"trace": q.SparseVector(neurons[a:b], values[a:b])}
            if dense is not None:
                vector["dense"] = dense[row]
            payload = {"text": batch.texts[row], "shade": shades[row]}
            points.append(q.Point(batch.first + row, vector, payload))
        for start in range(0, len(points), self.PAGE):
            page = points[start : start + self.PAGE]
            self.shard.update(q.UpdateOperation.upsert_points(page))

    def finish(self) -> None:
        while self.shard.optimize():
            pass
        self.shard.flush()

    def close(self) -> None:
        self.shard.close()

    def sparse(self, weights: Mapping[int, float], k: int) -> Found:
        neurons = sorted(weights)
        vector = self.q.SparseVector(neurons, [weights[neuron] for neuron in neurons])
        query = self.q.Query.Nearest(vector, using="trace")
        found = self.shard.query(self.q.QueryRequest(limit=k, query=query))
        return [(point.id, point.score) for point in found if point.score > 0]

    def dense(self, vector: Float32, k: int, below: int | None) -> Found:
        q, passing = self.q, None
        if below is not None:
            condition = q.FieldCondition(key="shade", range=q.RangeFloat(lt=below))
            passing = q.Filter(must=[condition])
        query = q.Query.Nearest(vector.tolist(), using="dense")
        found = self.shard.query(q.QueryRequest(limit=k, query=query, filter=passing))
        return [(point.id, point.score) for point in found]


class SQLite(Engine):
    """What the two engines over SQLite share: a file in WAL mode."""

    def __init__(self, folder: Path, width: int, dimension: int) -> None:
        self.db = self.connect(str(folder / "memories.db"))
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = NORMAL")
        self.db.executescript(self.SCHEMA.replace("DIMENSION", str(dimension)))

    SCHEMA: str

    def connect(self, file: str) -> Any:
        """Return a connection; which driver made it is the engine's affair."""
        return sqlite3.connect(file)

    def close(self) -> None:
        self.db.close()


class PlainSQLite(SQLite):
    """One table row an activation, composites by GROUP BY: what one writes without a library.

    WITHOUT ROWID, so that the index on (neuron, activation) carries the memory and covers a query.
    """

    name, kinds, holds = "sqlite", SPARSE, "texts, traces"
    SCHEMA = """
        CREATE TABLE IF NOT EXISTS memory (id INTEGER PRIMARY KEY, text TEXT, shade INTEGER);
        CREATE TABLE IF NOT EXISTS activation (
            memory INTEGER, neuron INTEGER, activation REAL, PRIMARY KEY (memory, neuron)
        ) WITHOUT ROWID;
    """
    TOP = """
        SELECT memory, activation * ?2 FROM activation WHERE neuron = ?1
        ORDER BY activation DESC LIMIT ?3
    """
    COMPOSITE = """
        WITH term (neuron, weight) AS (VALUES {})
        SELECT memory, sum(weight * activation) AS score
        FROM term CROSS JOIN activation USING (neuron)
        GROUP BY memory HAVING score > 0 ORDER BY score DESC LIMIT ?
    """

    def insert(self, batch: Batch) -> None:
        memories = zip(batch.numbers, batch.texts, batch.shade.tolist(), strict=True)
        rows = np.repeat(np.array(batch.numbers), np.diff(batch.indptr)).tolist()
        activations = zip(rows, batch.neurons.tolist(), batch.activations.tolist(), strict=True)
        with self.db:
            self.db.executemany("INSERT INTO memory VALUES (?, ?, ?)", memories)
            self.db.executemany("INSERT INTO activation VALUES (?, ?, ?)", activations)

    def finish(self) -> None:
        with self.db:
            self.db.execute("CREATE INDEX by_neuron ON activation (neuron, activation)")
        self.db.execute("ANALYZE")
        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def sparse(self, weights: Mapping[int, float], k: int) -> Found:
        terms = [number for term in weights.items() for number in term]
        query = self.COMPOSITE.format(", ".join(["(?, ?)"] * len(weights)))
        if len(weights) == 1 and terms[1] > 0:
            query = self.TOP
        found: Found = self.db.execute(query, (*terms, k)).fetchall()
        return found


class SqliteVec(SQLite):
    """The vec0 table: every vector compared inside SQLite, so exact; shade is a metadata column."""

    name, kinds, holds = "sqlite-vec", DENSE, "texts, vectors"
    SCHEMA = """
        CREATE VIRTUAL TABLE IF NOT EXISTS memory USING vec0(
            id INTEGER PRIMARY KEY, vector FLOAT[DIMENSION] distance_metric=cosine,
            shade INTEGER, +text TEXT
        );
    """

    def connect(self, file: str) -> Any:
        extension = need("sqlite_vec", "sqlite-vec")
        driver: Any = sqlite3
        if not hasattr(sqlite3.Connection, "enable_load_extension"):
            # Many a Python is built without extensions; this driver is SQLite with them.
            driver = need("pysqlite3", "pysqlite3-binary")
        connection = driver.connect(file)
        connection.enable_load_extension(True)
        extension.load(connection)
        return connection

    def insert(self, batch: Batch) -> None:
        vectors = map(np.ndarray.tobytes, () if batch.vectors is None else batch.vectors)
        rows = zip(batch.numbers, vectors, batch.shade.tolist(), batch.texts, strict=True)
        with self.db:
            self.db.executemany(
                "INSERT INTO memory (id, vector, shade, text) VALUES (?, ?, ?, ?)", rows
            )

    def finish(self) -> None:
        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def dense(self, vector: Float32, k: int, below: int | None) -> Found:
        query = "SELECT id, 1 - distance FROM memory WHERE vector MATCH ? AND k = ?"
        bound = () if below is None else (below,)
        query += " AND shade < ?" * len(bound) + " ORDER BY distance"
        found: Found = self.db.execute(query, (vector.tobytes(), k, *bound)).fetchall()
        return found


class ScipyCSC(Engine):
    """The columns of a compressed matrix in memory: what a notebook does."""

    name, kinds, holds = "scipy", SPARSE, "traces"

    def __init__(self, folder: Path, width: int, dimension: int) -> None:
        self.scipy = need("scipy.sparse", "scipy")
        self.file, self.width = folder / "traces.npz", width
        self.parts: list[Any] = []
        self.matrix: Any = self.scipy.load_npz(self.file) if self.file.exists() else None

    def insert(self, batch: Batch) -> None:
        # scipy has no float16.
        arrays = (batch.activations.astype(np.float32), batch.neurons, batch.indptr)
        shape = (len(batch.texts), self.width)
        self.parts.append(self.scipy.csr_matrix(arrays, shape=shape))

    def finish(self) -> None:
        self.matrix = self.scipy.vstack(self.parts, format="csr").tocsc()
        self.parts = []
        self.scipy.save_npz(self.file, self.matrix, compressed=False)

    def close(self) -> None:
        self.matrix = None

    def sparse(self, weights: Mapping[int, float], k: int) -> Found:
        scores = self.matrix[:, list(weights)] @ np.fromiter(weights.values(), np.float32)
        rows = np.flatnonzero(scores > 0)
        if len(rows) > k:
            rows = rows[np.argpartition(-scores[rows], k - 1)[:k]]
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        return list(zip(rows.tolist(), scores[rows].tolist(), strict=True))


class FaissFlat(Engine):
    """FAISS alone, every vector compared: exact. A filter is a bitmap made anew a query."""

    name, kinds, holds = "faiss-flat", DENSE, "vectors"

    def __init__(self, folder: Path, width: int, dimension: int) -> None:
        self.faiss = need("faiss", "faiss-cpu")
        self.index_file, self.shade_file = folder / "index.faiss", folder / "shade.npy"
        self.shades: list[NDArray[np.uint8]] = []
        if self.index_file.exists():
            self.index = self.faiss.read_index(str(self.index_file))
            self.shade = np.load(self.shade_file)
        else:
            self.index = self.create(dimension)

    def create(self, dimension: int) -> Any:
        """Return an empty index."""
        return self.faiss.IndexFlatIP(dimension)

    def parameters(self, selector: Any) -> Any:
        """Return what a search is given."""
        return self.faiss.SearchParameters(sel=selector)

    def insert(self, batch: Batch) -> None:
        self.index.add(batch.vectors)
        self.shades.append(batch.shade)

    def finish(self) -> None:
        self.shade = np.concatenate(self.shades)
        self.faiss.write_index(self.index, str(self.index_file))
        np.save(self.shade_file, self.shade)

    def close(self) -> None:
        self.index = None

    def dense(self, vector: Float32, k: int, below: int | None) -> Found:
        selector = None
        if below is not None:
            bitmap = np.packbits(self.shade < below, bitorder="little")
            selector = self.faiss.IDSelectorBitmap(bitmap)
        scores, rows = self.index.search(vector[None], k, params=self.parameters(selector))
        found = zip(rows[0].tolist(), scores[0].tolist(), strict=True)
        return [(row, score) for row, score in found if row >= 0]


class FaissHNSW(FaissFlat):
    """FAISS alone, a graph of 32 links a node."""

    name = "faiss-hnsw"

    def create(self, dimension: int) -> Any:
        index = self.faiss.IndexHNSWFlat(dimension, 32, self.faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 40
        return index

    def parameters(self, selector: Any) -> Any:
        return self.faiss.SearchParametersHNSW(sel=selector, efSearch=64)


class LanceDB(Engine):
    """IVF_HNSW_SQ with its defaults, a bitmap index on shade, fragments compacted first.

    ef is 10 x k, the upper end of what the documentation advises for recall. The metric is "dot",
    the same for unit vectors: with "cosine" this index returns squared L2 distances (0.40).
    """

    name, kinds, holds = "lancedb", DENSE, "texts, vectors"

    def __init__(self, folder: Path, width: int, dimension: int) -> None:
        lancedb, self.pa = need("lancedb", "lancedb"), need("pyarrow", "pyarrow")
        pa = self.pa
        columns = {"id": pa.int64(), "text": pa.string(), "shade": pa.uint8()}
        self.schema = pa.schema({**columns, "vector": pa.list_(pa.float32(), dimension)})
        self.connection = lancedb.connect(str(folder))
        self.table = self.connection.create_table("memory", schema=self.schema, exist_ok=True)

    def insert(self, batch: Batch) -> None:
        flat = self.pa.array(np.ravel(np.asarray(batch.vectors)))
        vectors = self.pa.FixedSizeListArray.from_arrays(flat, len(flat) // len(batch.texts))
        columns = [np.array(batch.numbers), batch.texts, batch.shade, vectors]
        self.table.add(self.pa.table(columns, schema=self.schema))

    def finish(self) -> None:
        self.table.optimize()
        self.table.create_index(metric="dot", index_type="IVF_HNSW_SQ")
        self.table.create_scalar_index("shade", index_type="BITMAP")
        with warnings.catch_warnings():
            # It warns of other processes, of which there are none.
            warnings.simplefilter("ignore")
            self.table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)

    def close(self) -> None:
        self.table = self.connection = None

    def dense(self, vector: Float32, k: int, below: int | None) -> Found:
        query = self.table.search(vector, vector_column_name="vector")
        query = query.distance_type("dot").ef(10 * k).limit(k).select(["id", "_distance"])
        if below is not None:
            query = query.where(f"shade < {below}", prefilter=True)
        found = query.to_arrow().to_pydict()
        scores = [1.0 - distance for distance in found["_distance"]]
        return list(zip(found["id"], scores, strict=True))


class Chroma(Engine):
    """PersistentClient: HNSW with its defaults, inserted by the largest batch it takes."""

    name, kinds, holds = "chroma", DENSE, "texts, vectors"

    def __init__(self, folder: Path, width: int, dimension: int) -> None:
        chroma = need("chromadb", "chromadb")
        settings = chroma.config.Settings(anonymized_telemetry=False)
        self.client = chroma.PersistentClient(path=str(folder), settings=settings)
        self.collection = self.client.get_or_create_collection(
            "memory", embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
        )

    def insert(self, batch: Batch) -> None:
        ids = [str(number) for number in batch.numbers]
        shades = [{"shade": shade} for shade in batch.shade.tolist()]
        vectors, page = np.asarray(batch.vectors), self.client.get_max_batch_size()
        for start in range(0, len(ids), page):
            part = slice(start, start + page)
            self.collection.add(ids[part], vectors[part], shades[part], batch.texts[part])

    def close(self) -> None:
        self.client.close()

    def dense(self, vector: Float32, k: int, below: int | None) -> Found:
        where = None if below is None else {"shade": {"$lt": below}}
        found = self.collection.query(
            query_embeddings=vector[None], n_results=k, where=where, include=["distances"]
        )
        scores = [1.0 - distance for distance in found["distances"][0]]
        return list(zip(map(int, found["ids"][0]), scores, strict=True))


PEERS: tuple[type[Engine], ...] = (
    *(QdrantEdge, PlainSQLite, ScipyCSC, FaissFlat, FaissHNSW, SqliteVec, LanceDB, Chroma),
)
