"""The first schema: memories, their vectors and traces, neurons, encoders, full-text words.

Plain SQL, because this is what people will read in the sqlite3 shell.
"""

from alembic import op

revision = "0001"
down_revision = None

TABLES = """
CREATE TABLE encoder (
    id INTEGER PRIMARY KEY,
    fingerprint TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    dimension INTEGER NOT NULL,
    neurons INTEGER NOT NULL,
    config TEXT NOT NULL,
    created_at INTEGER NOT NULL
);
CREATE TABLE store (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    store_id TEXT NOT NULL,
    change INTEGER NOT NULL,
    log_floor INTEGER NOT NULL,
    index_token TEXT,
    encoder_id INTEGER REFERENCES encoder (id),
    created_at INTEGER NOT NULL
);
CREATE TABLE category (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);
CREATE TABLE memory (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    text TEXT NOT NULL,
    category_id INTEGER REFERENCES category (id),
    "key" TEXT UNIQUE,
    metadata TEXT NOT NULL,
    occurred_at INTEGER,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    content_hash BLOB NOT NULL,
    changed INTEGER NOT NULL
);
CREATE INDEX memory_category ON memory (category_id);
CREATE INDEX memory_content_hash ON memory (content_hash);
CREATE INDEX memory_changed ON memory (changed);
CREATE TABLE vector (
    memory_id INTEGER NOT NULL REFERENCES memory (id) ON DELETE CASCADE,
    encoder_id INTEGER NOT NULL REFERENCES encoder (id),
    vector BLOB NOT NULL,
    PRIMARY KEY (memory_id, encoder_id)
);
CREATE TABLE trace (
    memory_id INTEGER NOT NULL REFERENCES memory (id) ON DELETE CASCADE,
    encoder_id INTEGER NOT NULL REFERENCES encoder (id),
    neurons BLOB NOT NULL,
    activations BLOB NOT NULL,
    PRIMARY KEY (memory_id, encoder_id)
);
CREATE TABLE neuron (
    encoder_id INTEGER NOT NULL REFERENCES encoder (id),
    neuron INTEGER NOT NULL,
    label TEXT,
    grade REAL,
    method TEXT,
    fires INTEGER,
    mean REAL,
    maximum REAL,
    PRIMARY KEY (encoder_id, neuron)
);
CREATE UNIQUE INDEX neuron_label ON neuron (encoder_id, label) WHERE label IS NOT NULL;
CREATE TABLE deletion (
    memory_id INTEGER PRIMARY KEY,
    changed INTEGER NOT NULL
);
CREATE INDEX deletion_changed ON deletion (changed);
CREATE VIRTUAL TABLE memory_words USING fts5 (
    text, content = 'memory', content_rowid = 'id', tokenize = 'unicode61'
)
"""

# FTS5 keeps no copy of the text; these keep its word lists true, whoever writes.
TRIGGERS = (
    """CREATE TRIGGER memory_words_insert AFTER INSERT ON memory BEGIN
        INSERT INTO memory_words (rowid, text) VALUES (new.id, new.text);
    END""",
    """CREATE TRIGGER memory_words_delete AFTER DELETE ON memory BEGIN
        INSERT INTO memory_words (memory_words, rowid, text) VALUES ('delete', old.id, old.text);
    END""",
    """CREATE TRIGGER memory_words_update AFTER UPDATE OF text ON memory BEGIN
        INSERT INTO memory_words (memory_words, rowid, text) VALUES ('delete', old.id, old.text);
        INSERT INTO memory_words (rowid, text) VALUES (new.id, new.text);
    END""",
)

# For people, in any sqlite3 shell: the packed traces as the table one expects, one row an
# activation. Our own code never reads through it. The blobs are little-endian, neuron ids 2 or 4
# bytes each, activations IEEE 754 half floats; powers of two come from shifts because the maths
# functions are a build option of SQLite.
ACTIVATION_VIEW = """
CREATE VIEW activation (memory_id, neuron, activation) AS
WITH RECURSIVE
size AS (
    SELECT memory_id, neurons, activations, length(activations) / 2 AS n,
           length(neurons) * 2 / length(activations) AS width
    FROM trace
    WHERE encoder_id = (SELECT encoder_id FROM store) AND length(activations) > 0
),
position (memory_id, i) AS (
    SELECT memory_id, 0 FROM size
    UNION ALL
    SELECT position.memory_id, i + 1 FROM position JOIN size USING (memory_id) WHERE i + 1 < n
),
digits AS (
    SELECT memory_id, hex(substr(activations, 2 * i + 1, 2)) AS half,
           hex(substr(neurons, width * i + 1, width)) AS number
    FROM position JOIN size USING (memory_id)
),
bits AS (
    SELECT memory_id,
           (instr('0123456789ABCDEF', substr(half, 3, 1)) - 1) * 4096
         + (instr('0123456789ABCDEF', substr(half, 4, 1)) - 1) * 256
         + (instr('0123456789ABCDEF', substr(half, 1, 1)) - 1) * 16
         + (instr('0123456789ABCDEF', substr(half, 2, 1)) - 1) AS half,
           (instr('0123456789ABCDEF', substr(number, 3, 1)) - 1) * 4096
         + (instr('0123456789ABCDEF', substr(number, 4, 1)) - 1) * 256
         + (instr('0123456789ABCDEF', substr(number, 1, 1)) - 1) * 16
         + (instr('0123456789ABCDEF', substr(number, 2, 1)) - 1)
         + CASE WHEN length(number) = 8 THEN
              (instr('0123456789ABCDEF', substr(number, 7, 1)) - 1) * 268435456
            + (instr('0123456789ABCDEF', substr(number, 8, 1)) - 1) * 16777216
            + (instr('0123456789ABCDEF', substr(number, 5, 1)) - 1) * 1048576
            + (instr('0123456789ABCDEF', substr(number, 6, 1)) - 1) * 65536
           ELSE 0 END AS neuron
    FROM digits
)
SELECT memory_id, neuron,
       CASE WHEN half >> 10 = 0 THEN (half & 1023) / 16777216.0
            ELSE (1024 + (half & 1023)) * (1 << (half >> 10)) / 33554432.0 END
FROM bits
"""


def upgrade() -> None:
    for statement in TABLES.split(";"):
        op.execute(statement)
    for trigger in TRIGGERS:
        op.execute(trigger)
    op.execute(ACTIVATION_VIEW)
