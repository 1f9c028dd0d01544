-- Jobs whose rows count only when they are verified: what everybody answered, what rows wait for, and what was taken back.

ALTER TABLE jobs ADD COLUMN verified INTEGER NOT NULL DEFAULT 0;

-- The payload stands last, as in results.
CREATE TABLE answers (
    job TEXT NOT NULL,
    number INTEGER NOT NULL,
    vehicle TEXT NOT NULL,    -- empty: computed by the coordinator itself
    engine TEXT NOT NULL,
    held INTEGER NOT NULL,
    void INTEGER NOT NULL DEFAULT 0,
    received_ms INTEGER NOT NULL,
    pieces BLOB NOT NULL,     -- MessagePack list of [start, stop, offset], in slots: see coordinator.progress
    payload BLOB NOT NULL,
    PRIMARY KEY (job, number)
);

CREATE TABLE checks (
    job TEXT NOT NULL,
    row INTEGER NOT NULL,
    state INTEGER NOT NULL,   -- see coordinator.model.Check
    PRIMARY KEY (job, row)
) WITHOUT ROWID;

ALTER TABLE results ADD COLUMN answer INTEGER;                        -- of verified jobs: whose payload it is
ALTER TABLE results ADD COLUMN retracted INTEGER NOT NULL DEFAULT 0;  -- rows that came earlier and do not count
ALTER TABLE results ADD COLUMN row_count INTEGER NOT NULL DEFAULT 0;  -- of verified jobs; less than 0 where retracted

ALTER TABLE conduct ADD COLUMN checks_passed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE conduct ADD COLUMN convictions INTEGER NOT NULL DEFAULT 0;
ALTER TABLE conduct ADD COLUMN convicted_ms INTEGER NOT NULL DEFAULT 0;
