-- The event log in a file, version 1. Times are seconds.

-- Who may write: one row per lease, its number the epoch of the streams that were opened under it.
CREATE TABLE producers (
    epoch INTEGER PRIMARY KEY AUTOINCREMENT,
    lease REAL NOT NULL,                -- its length
    lease_until REAL NOT NULL           -- on the machine's monotonic clock, which all its processes share
);

CREATE TABLE streams (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    key TEXT,
    epoch INTEGER NOT NULL,
    head BLOB NOT NULL,
    started INTEGER NOT NULL DEFAULT 0,
    stop INTEGER NOT NULL DEFAULT 0,
    dropped INTEGER NOT NULL DEFAULT 0, -- records up to this sequence were evicted
    dropped_offset INTEGER NOT NULL DEFAULT 0,
    opened_at REAL NOT NULL,            -- since the epoch of Unix, as is ended_at
    reason TEXT,                        -- of the end, as are those below: NULL until there is one
    detail BLOB,
    sequence INTEGER,
    offset INTEGER,
    ended_at REAL
);
CREATE INDEX running ON streams (epoch) WHERE reason IS NULL;
CREATE INDEX stopped ON streams (epoch) WHERE stop = 1 AND reason IS NULL;
CREATE INDEX finished ON streams (ended_at) WHERE reason IS NOT NULL;

-- The latest stream of a key.
CREATE TABLE keys (
    owner TEXT NOT NULL,
    key TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (owner, key)
) WITHOUT ROWID;

-- Records, many to a row. The position is the stream's number << 32 | the sequence of the last record: one tree, in
-- which a stream's batches lie side by side, and in which no two producers can write the same place.
CREATE TABLE batches (
    position INTEGER PRIMARY KEY,
    end_offset INTEGER NOT NULL,
    sizes BLOB,                         -- of the records, 32 bits little-endian each; NULL for a single one
    data BLOB NOT NULL
);

-- Who reads what, by the lease of the reading process: so that producers know, all can be listed, and what has ended is
-- kept while it is read.
CREATE TABLE readers (
    number INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    readers INTEGER NOT NULL,
    cursor INTEGER NOT NULL,            -- of the one that is furthest
    PRIMARY KEY (number, epoch)
) WITHOUT ROWID;
