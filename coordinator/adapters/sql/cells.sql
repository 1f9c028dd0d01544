-- What only a ledger has that several coordinators can reach: the cell, who may write for it, and until when.

-- name: set_up
-- Let a commit wait for the disk, where the server would answer before; and let no plan read whole tables: one that was
-- made while a table was small is kept when it has grown.
SELECT
    CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', false) END,
    set_config('enable_seqscan', 'off', false),
    set_config('enable_hashjoin', 'off', false),
    set_config('enable_mergejoin', 'off', false);

-- name: types_of_values
-- Which types the values of prepared statements have.
SELECT name, CAST(parameter_types AS TEXT[]) FROM pg_prepared_statements WHERE from_sql;

-- name: lock_schema
-- Let one at a time make and change tables; until the end of the transaction.
SELECT pg_advisory_xact_lock(7308339910637985132);

-- name: make_version
-- The number of the last migration that was run.
CREATE TABLE IF NOT EXISTS ledger_version (version BIGINT NOT NULL);

-- name: make_cells
-- `token` grows by one with each holder, and `round` with each commit. A lease ends by this server's clock.
CREATE TABLE IF NOT EXISTS cells (
    name TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    token BIGINT NOT NULL,
    round BIGINT NOT NULL,
    lease_ends TIMESTAMPTZ NOT NULL
);

-- name: version
-- The version of the tables; no row in a new ledger.
SELECT version FROM ledger_version;

-- name: add_version
-- Keep the version of new tables.
INSERT INTO ledger_version (version) VALUES (?);

-- name: set_version
-- Keep the version of changed tables.
UPDATE ledger_version SET version = ?;

-- name: add_cell
-- Make the cell; one that is there stays as it is. An upsert would wait for a commit that is under way.
INSERT INTO cells (name, holder, token, round, lease_ends)
SELECT CAST(:name AS TEXT), '', 0, 0, now() WHERE NOT EXISTS (SELECT 1 FROM cells WHERE name = :name);

-- name: other_cell
-- Whose ledger it is when it is not this cell's.
SELECT name FROM cells WHERE name <> ?;

-- name: look
-- Who holds the cell, by which token, how much was committed, and for how many seconds it is still held.
SELECT holder, token, round, extract(epoch FROM lease_ends - clock_timestamp())::double precision
FROM cells WHERE name = ?;

-- name: take
-- Become the holder, if the lease has ended.
UPDATE cells SET
    holder = :holder,
    token = token + 1,
    lease_ends = clock_timestamp() + make_interval(secs => :lease_s)
WHERE name = :name AND lease_ends <= clock_timestamp()
RETURNING token, round;

-- name: renew
-- Stay the holder.
UPDATE cells SET lease_ends = clock_timestamp() + make_interval(secs => :lease_s)
WHERE name = :name AND token = :token;

-- name: count_round
-- Count a commit, as its last statement. With another holder's token, or when the round is there already, `round` would
-- be NULL, which the table refuses, and the transaction with it: no answer has to be waited for before COMMIT is sent.
UPDATE cells SET
    round = CASE WHEN token = :token AND round = :round - 1 THEN CAST(:round AS BIGINT) END,
    lease_ends = clock_timestamp() + make_interval(secs => :lease_s)
WHERE name = :name;

-- name: release
-- Let somebody else be the holder at once.
UPDATE cells SET lease_ends = clock_timestamp() WHERE name = :name AND token = :token;

-- name: end_earlier_writers
-- End what earlier connections of this cell's holders had under way: it could not commit, and may hold locks for ever.
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND usename = current_user AND application_name = ? AND pid <> pg_backend_pid();
