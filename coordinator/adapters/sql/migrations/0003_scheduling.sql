-- Copies of late leases, rows that fail everywhere, and how vehicles conduct themselves.

ALTER TABLE leases ADD COLUMN copy_of INTEGER;  -- the chunk whose rows this one repeats, or NULL

CREATE TABLE failed_rows (
    job TEXT NOT NULL,
    row INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    error TEXT NOT NULL,
    PRIMARY KEY (job, row)
) WITHOUT ROWID;

CREATE TABLE conduct (
    vehicle TEXT PRIMARY KEY,
    strikes INTEGER NOT NULL,
    quarantined_until_ms INTEGER NOT NULL,
    leases_kept REAL NOT NULL,   -- of late, so no whole number
    leases_ended REAL NOT NULL
) WITHOUT ROWID;
