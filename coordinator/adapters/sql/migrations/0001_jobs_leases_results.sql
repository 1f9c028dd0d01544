-- Jobs, the leases on their chunks, and the rows that were accepted.

CREATE TABLE models (
    digest TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    inputs TEXT NOT NULL,   -- JSON list of TensorSpec
    outputs TEXT NOT NULL,  -- JSON list of TensorSpec
    batch_rows INTEGER
) WITHOUT ROWID;

CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    model TEXT NOT NULL,
    inputs TEXT NOT NULL,
    row_count INTEGER NOT NULL,
    row_bytes INTEGER NOT NULL,
    terms TEXT NOT NULL,    -- JSON of JobTerms
    created_ms INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'running',
    ended_ms INTEGER,
    error TEXT,
    rows_released_again INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

CREATE INDEX jobs_by_end ON jobs (state, ended_ms);

CREATE TABLE leases (
    job TEXT NOT NULL,
    chunk INTEGER NOT NULL,
    start INTEGER NOT NULL,
    stop INTEGER NOT NULL,
    vehicle TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    granted_ms INTEGER NOT NULL,
    deadline_ms INTEGER NOT NULL,
    ended TEXT,             -- how, or NULL while the lease is open
    ended_ms INTEGER,
    PRIMARY KEY (job, chunk)
) WITHOUT ROWID;

-- The payload stands last, so that reading the other columns does not touch its pages.
CREATE TABLE results (
    seq INTEGER PRIMARY KEY,
    job TEXT NOT NULL,
    vehicle TEXT NOT NULL,
    accepted_ms INTEGER NOT NULL,
    compute_ms REAL NOT NULL,
    energy_mwh INTEGER NOT NULL,
    pay_micro INTEGER NOT NULL,
    pieces BLOB NOT NULL,   -- MessagePack list of [start, stop, offset]
    payload_ref TEXT,
    payload BLOB
);

CREATE INDEX results_by_job ON results (job);

-- What each vehicle did for each job: the sums of its results.
CREATE TABLE shares (
    job TEXT NOT NULL,
    vehicle TEXT NOT NULL,
    rows_done INTEGER NOT NULL,
    compute_ms REAL NOT NULL,
    energy_mwh INTEGER NOT NULL,
    pay_micro INTEGER NOT NULL,
    PRIMARY KEY (job, vehicle)
) WITHOUT ROWID;
