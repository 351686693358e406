"""The tables as SQLAlchemy sees them, for queries only.

The migrations create the store; nothing is ever created from here. A test compares the two.
"""

from sqlalchemy import (
    Column,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)

metadata = MetaData()

encoder = Table(
    "encoder",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("fingerprint", String, nullable=False, unique=True),
    Column("name", String, nullable=False),
    Column("dimension", Integer, nullable=False),
    Column("neurons", Integer, nullable=False),
    Column("config", String, nullable=False),
    Column("created_at", Integer, nullable=False),
)

store = Table(
    "store",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("store_id", String, nullable=False),
    Column("change", Integer, nullable=False),
    Column("log_floor", Integer, nullable=False),
    Column("index_token", String),
    Column("encoder_id", Integer, ForeignKey("encoder.id")),
    Column("created_at", Integer, nullable=False),
)

category = Table(
    "category",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
)

#: Times are microseconds since 1970, UTC: exact, and in order as numbers.
memory = Table(
    "memory",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("text", String, nullable=False),
    Column("category_id", Integer, ForeignKey("category.id")),
    Column("key", String, unique=True),
    Column("metadata", String, nullable=False),
    Column("occurred_at", Integer),
    Column("created_at", Integer, nullable=False),
    Column("updated_at", Integer, nullable=False),
    Column("changed", Integer, nullable=False),
    Column("content_hash", Integer, nullable=False, server_default="0"),
)

vector = Table(
    "vector",
    metadata,
    Column("memory_id", Integer, ForeignKey("memory.id"), primary_key=True),
    Column("encoder_id", Integer, ForeignKey("encoder.id"), nullable=False),
    Column("vector", LargeBinary, nullable=False),
)

trace = Table(
    "trace",
    metadata,
    Column("memory_id", Integer, ForeignKey("memory.id"), primary_key=True),
    Column("encoder_id", Integer, ForeignKey("encoder.id"), nullable=False),
    Column("neurons", LargeBinary, nullable=False),
    Column("activations", LargeBinary, nullable=False),
)

#: What another encoder made of texts, until a store switches to it; after that, what was before.
vector_next = vector.to_metadata(metadata, name="vector_next")
trace_next = trace.to_metadata(metadata, name="trace_next")

neuron = Table(
    "neuron",
    metadata,
    Column("encoder_id", Integer, ForeignKey("encoder.id"), primary_key=True),
    Column("neuron", Integer, primary_key=True),
    Column("label", String),
    Column("grade", Float),
    Column("method", String),
    Column("fires", Integer),
    Column("mean", Float),
    Column("maximum", Float),
    Column("sentence", String),
    Column("model", String),
)

#: A neuron expression saved under a name; of neuron numbers only.
lens = Table(
    "lens",
    metadata,
    Column("encoder_id", Integer, ForeignKey("encoder.id"), primary_key=True),
    Column("name", String, primary_key=True),
    Column("expression", String, nullable=False),
    Column("by", String, nullable=False),
    Column("threshold", Float, nullable=False),
    Column("grade", Float),
    Column("category", String),
    Column("created_at", Integer, nullable=False),
)

#: What a memory was nearly a copy of when it was inserted.
link = Table(
    "link",
    metadata,
    Column("memory_id", Integer, ForeignKey("memory.id"), primary_key=True),
    Column("other_id", Integer, ForeignKey("memory.id"), nullable=False),
    Column("cosine", Float, nullable=False),
)

#: Ids that went away and when, so that another process's index can follow.
deletion = Table(
    "deletion",
    metadata,
    Column("memory_id", Integer, primary_key=True),
    Column("changed", Integer, nullable=False),
)
