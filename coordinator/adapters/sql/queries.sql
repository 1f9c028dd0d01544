-- Every statement that the ledger runs, besides its migrations.

-- name: add_model
-- Keep a checked model; a model that is known already stays as it is.
INSERT INTO models (digest, size, inputs, outputs, batch_rows)
VALUES (:digest, :size, :inputs, :outputs, :batch_rows)
ON CONFLICT DO NOTHING;

-- name: add_job
-- Keep a new, running job.
INSERT INTO jobs (id, name, model, inputs, row_count, row_bytes, terms, created_ms, traceparent, tracestate)
VALUES (:id, :name, :model, :inputs, :row_count, :row_bytes, :terms, :created_ms, :traceparent, :tracestate);

-- name: end_job
-- Say how a running job came to its end; one that has ended stays as it is.
UPDATE jobs SET state = :state, ended_ms = :ended_ms, error = :error WHERE id = :job AND state = 'running';

-- name: add_lease
-- Keep an open lease on a chunk.
INSERT INTO leases (job, chunk, start, stop, vehicle, epoch, granted_ms, deadline_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: end_lease
-- Say how and when a lease ended.
UPDATE leases SET ended = ?, ended_ms = ? WHERE job = ? AND chunk = ?;

-- name: count_rows_released
-- Add to the rows of a job that had to be leased again.
UPDATE jobs SET rows_released_again = rows_released_again + ? WHERE id = ?;

-- name: add_result
-- Keep accepted rows; a sequence number can't be used twice.
INSERT INTO results (seq, job, vehicle, accepted_ms, compute_ms, energy_mwh, pay_micro, pieces, payload_ref, payload)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: add_share
-- Add to what a vehicle did for a job.
INSERT INTO shares (job, vehicle, rows_done, compute_ms, energy_mwh, pay_micro) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET
    rows_done = rows_done + excluded.rows_done,
    compute_ms = compute_ms + excluded.compute_ms,
    energy_mwh = energy_mwh + excluded.energy_mwh,
    pay_micro = pay_micro + excluded.pay_micro;

-- name: all_models
-- Every model.
SELECT digest, size, inputs, outputs, batch_rows FROM models ORDER BY digest;

-- name: running_jobs
-- Every job that has not ended, the oldest first.
SELECT id, name, model, inputs, row_count, row_bytes, terms, created_ms, rows_released_again, traceparent, tracestate
FROM jobs WHERE state = 'running' ORDER BY created_ms, id;

-- name: pieces_of_job
-- Which rows of a job were accepted.
SELECT pieces FROM results WHERE job = ?;

-- name: open_leases
-- The leases of a job that have not ended.
SELECT job, chunk, start, stop, vehicle, epoch, granted_ms, deadline_ms
FROM leases WHERE job = ? AND ended IS NULL ORDER BY chunk;

-- name: next_chunk
-- The number that no lease of a job has had yet.
SELECT coalesce(max(chunk) + 1, 0) FROM leases WHERE job = ?;

-- name: sums_of_job
-- What a job took so far.
SELECT coalesce(sum(compute_ms), 0.0), coalesce(sum(energy_mwh), 0), coalesce(sum(pay_micro), 0)
FROM shares WHERE job = ?;

-- name: next_seq
-- The number that no result has had yet.
SELECT coalesce(max(seq) + 1, 1) FROM results;

-- name: rows_after
-- Results of a job behind a cursor, in order.
SELECT seq, job, vehicle, pieces, payload, payload_ref, accepted_ms, compute_ms, energy_mwh, pay_micro
FROM results WHERE job = ? AND seq > ? ORDER BY seq LIMIT ?;

-- name: job_view
-- One job as clients see it.
SELECT id, name, model, state, row_count, created_ms, ended_ms, error, rows_released_again,
    (SELECT coalesce(sum(stop - start), 0) FROM leases WHERE job = id AND ended IS NULL) AS rows_leased,
    (SELECT coalesce(sum(rows_done), 0) FROM shares WHERE job = id) AS rows_done,
    (SELECT coalesce(sum(compute_ms), 0.0) FROM shares WHERE job = id) AS compute_ms,
    (SELECT coalesce(sum(energy_mwh), 0) FROM shares WHERE job = id) AS energy_mwh,
    (SELECT coalesce(sum(pay_micro), 0) FROM shares WHERE job = id) AS pay_micro,
    (SELECT count(*) FROM shares WHERE job = id) AS vehicles
FROM jobs WHERE id = ?;

-- name: ended_jobs
-- The ids of jobs that came to their end, the latest first.
SELECT id FROM jobs WHERE state <> 'running' ORDER BY ended_ms DESC, id LIMIT ?;
