-- Every statement that a ledger runs on any engine, besides its migrations. See __init__.py for what both understand.

-- name: add_model
-- Keep a checked model; a model that is known already stays as it is.
INSERT INTO models (digest, size, inputs, outputs, batch_rows)
VALUES (?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING;

-- name: add_consent
-- Keep a version of an owner's policy.
INSERT INTO consents (vehicle, version, owner, document, set_by, set_ms) VALUES (?, ?, ?, ?, ?, ?);

-- name: newest_consents
-- The newest version of every vehicle's policy.
SELECT vehicle, document FROM consents AS one
WHERE version = (SELECT max(version) FROM consents WHERE vehicle = one.vehicle) ORDER BY vehicle;

-- name: consents_of
-- Every version of one vehicle's policy, the newest first.
SELECT vehicle, document, set_by, set_ms FROM consents WHERE vehicle = ? ORDER BY version DESC;

-- name: add_job
-- Keep a new, running job.
INSERT INTO jobs (id, name, model, inputs, row_count, row_bytes, terms, created_ms, traceparent, tracestate, verified)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: end_job
-- Say how a running job came to its end; one that has ended stays as it is.
UPDATE jobs SET state = ?, ended_ms = ?, error = ? WHERE id = ? AND state = 'running';

-- name: add_lease
-- Keep an open lease on a chunk.
INSERT INTO leases (
    job, chunk, start, stop, vehicle, epoch, granted_ms, deadline_ms,
    consent_version, energy_micro_per_kwh, pay_micro_per_h, month, copy_of
)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: change_lease
-- Say how and when a lease ended, when it did, and add to its receipt.
UPDATE leases SET
    ended = coalesce(?, ended),
    ended_ms = coalesce(?, ended_ms),
    rows_done = rows_done + ?,
    compute_us = compute_us + ?,
    energy_mwh = energy_mwh + ?,
    energy_pay_micro = energy_pay_micro + ?,
    fee_pay_micro = fee_pay_micro + ?
WHERE job = ? AND chunk = ?;

-- name: count_rows_released
-- Add to the rows of a job that had to be leased again.
UPDATE jobs SET rows_released_again = rows_released_again + ? WHERE id = ?;

-- name: add_result
-- Keep accepted rows; a sequence number can't be used twice.
INSERT INTO results (
    seq, job, vehicle, accepted_ms, compute_ms, energy_mwh, pay_micro, pieces, answer, retracted, row_count, payload_ref,
    payload
)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: add_answer
-- Keep rows that are to be verified.
INSERT INTO answers (job, number, vehicle, engine, held, received_ms, pieces, payload) VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: void_answers
-- Nothing that a vehicle has answered for a job so far counts any more.
UPDATE answers SET void = 1 WHERE job = ? AND vehicle = ?;

-- name: keep_check
-- Keep what a row waits for.
INSERT INTO checks (job, row, state) VALUES (?, ?, ?)
ON CONFLICT (job, row) DO UPDATE SET state = excluded.state;

-- name: answers_of_job
-- Answers of a job that are not void.
SELECT number, job, vehicle, engine, pieces, payload, held, received_ms
FROM answers WHERE job = ? AND void = 0 ORDER BY number;

-- name: ended_jobs_answered
-- Verified jobs that ended since a time, and for which a vehicle computed rows.
SELECT id FROM jobs
WHERE verified = 1 AND state <> 'running' AND ended_ms >= ?
    AND EXISTS (SELECT 1 FROM receipt_sums WHERE job = id AND vehicle = ?)
ORDER BY ended_ms, id;

-- name: rows_of_job
-- How many rows a job has.
SELECT row_count FROM jobs WHERE id = ?;

-- name: witnesses_of_job
-- Answers of a job that are not void, without outputs, and whether their vehicle was convicted since.
SELECT number, answers.vehicle, pieces,
    CASE WHEN convictions > 0 AND convicted_ms >= received_ms THEN 1 ELSE 0 END AS convicted
FROM answers LEFT JOIN conduct ON conduct.vehicle = answers.vehicle
WHERE job = ? AND void = 0 ORDER BY number;

-- name: next_answer
-- The number that no answer of a job has had yet.
SELECT coalesce(max(number) + 1, 0) FROM answers WHERE job = ?;

-- name: checks_of_job
-- What rows of a job wait for, or have waited for.
SELECT row, state FROM checks WHERE job = ? ORDER BY row;

-- name: add_receipts
-- Add to the sums of a vehicle's receipts.
INSERT INTO receipt_sums (
    job, vehicle, month, consent_version, rows_done, compute_us, energy_mwh, energy_pay_micro, fee_pay_micro
)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (job, vehicle, month, consent_version) DO UPDATE SET
    rows_done = receipt_sums.rows_done + excluded.rows_done,
    compute_us = receipt_sums.compute_us + excluded.compute_us,
    energy_mwh = receipt_sums.energy_mwh + excluded.energy_mwh,
    energy_pay_micro = receipt_sums.energy_pay_micro + excluded.energy_pay_micro,
    fee_pay_micro = receipt_sums.fee_pay_micro + excluded.fee_pay_micro;

-- name: add_failed_row
-- Keep that a row was given up, and why.
INSERT INTO failed_rows (job, row, attempts, error) VALUES (?, ?, ?, ?);

-- name: keep_conduct
-- Keep how a vehicle conducts itself.
INSERT INTO conduct (
    vehicle, strikes, quarantined_until_ms, leases_kept, leases_ended, checks_passed, convictions, convicted_ms
)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (vehicle) DO UPDATE SET
    strikes = excluded.strikes,
    quarantined_until_ms = excluded.quarantined_until_ms,
    leases_kept = excluded.leases_kept,
    leases_ended = excluded.leases_ended,
    checks_passed = excluded.checks_passed,
    convictions = excluded.convictions,
    convicted_ms = excluded.convicted_ms;

-- name: all_conduct
-- How every vehicle conducts itself that ever gave cause to keep it.
SELECT vehicle, strikes, quarantined_until_ms, leases_kept, leases_ended, checks_passed, convictions, convicted_ms
FROM conduct ORDER BY vehicle;

-- name: failed_rows
-- Rows of a job that were given up.
SELECT row, attempts, error FROM failed_rows WHERE job = ? ORDER BY row;

-- name: seen_of_job
-- How many rows of a job each vehicle was given.
SELECT vehicle, sum(stop - start) FROM leases WHERE job = ? GROUP BY vehicle ORDER BY vehicle;

-- name: rows_copied
-- How many rows of a job were given to a second car because they were late.
SELECT coalesce(sum(stop - start), 0) FROM leases WHERE job = ? AND copy_of IS NOT NULL;

-- name: all_models
-- Every model.
SELECT digest, size, inputs, outputs, batch_rows FROM models ORDER BY digest;

-- name: running_jobs
-- Every job that has not ended, the oldest first.
SELECT id, name, model, inputs, row_count, row_bytes, terms, created_ms, rows_released_again, traceparent, tracestate
FROM jobs WHERE state = 'running' ORDER BY created_ms, id;

-- name: pieces_of_job
-- Which rows of a job were accepted, and by which answer where they are verified; none has taken them back.
SELECT pieces, answer FROM results WHERE job = ? ORDER BY seq;

-- name: open_leases
-- The leases of a job that have not ended.
SELECT job, chunk, start, stop, vehicle, epoch, granted_ms, deadline_ms,
    consent_version, energy_micro_per_kwh, pay_micro_per_h, month, copy_of
FROM leases WHERE job = ? AND ended IS NULL ORDER BY chunk;

-- name: ended_leases
-- The latest leases of a job that ended: what was computed under one may come again, together with what is new.
SELECT job, chunk, start, stop, vehicle, epoch, granted_ms, deadline_ms,
    consent_version, energy_micro_per_kwh, pay_micro_per_h, month, copy_of
FROM leases WHERE job = ? AND ended IS NOT NULL ORDER BY chunk DESC LIMIT ?;

-- name: next_chunk
-- The number that no lease of a job has had yet.
SELECT coalesce(max(chunk) + 1, 0) FROM leases WHERE job = ?;

-- name: sums_of_job
-- What a job took so far.
SELECT
    coalesce(sum(compute_us), 0), coalesce(sum(energy_mwh), 0), coalesce(sum(energy_pay_micro + fee_pay_micro), 0)
FROM receipt_sums WHERE job = ?;

-- name: rests_of_job
-- What each vehicle has earned at a job below a whole micro-unit, which is not paid yet: see coordinator.model.Rest.
SELECT vehicle,
    sum(energy_mwh * energy_micro_per_kwh % 1000000) % 1000000,
    sum(compute_us * pay_micro_per_h % 3600000000) % 3600000000
FROM leases WHERE job = ? AND rows_done > 0 GROUP BY vehicle ORDER BY vehicle;

-- name: worked_of_job
-- When each vehicle was granted the first lease of a job that it was paid for, and for how many microseconds it was.
SELECT vehicle, min(granted_ms), sum(compute_us) FROM leases
WHERE job = ? AND compute_us > 0 GROUP BY vehicle ORDER BY vehicle;

-- name: sums_of_vehicles
-- What each vehicle did and earned in all its time.
SELECT vehicle, sum(rows_done), sum(energy_mwh), sum(energy_pay_micro + fee_pay_micro)
FROM receipt_sums GROUP BY vehicle ORDER BY vehicle;

-- name: statement
-- Sums of receipts by owner, vehicle, job or month, filtered by the same. A consent that is not on record has no owner.
SELECT
    CASE CAST(:by AS TEXT)
        WHEN 'owner' THEN coalesce(owner, '')
        WHEN 'vehicle' THEN receipt_sums.vehicle
        WHEN 'job' THEN job
        ELSE CAST(month AS TEXT)
    END AS line,
    sum(rows_done), sum(compute_us), sum(energy_mwh), sum(energy_pay_micro), sum(fee_pay_micro)
FROM receipt_sums LEFT JOIN consents ON consents.vehicle = receipt_sums.vehicle AND version = consent_version
WHERE (CAST(:owner AS TEXT) IS NULL OR owner = :owner)
    AND (CAST(:vehicle AS TEXT) IS NULL OR receipt_sums.vehicle = :vehicle)
    AND (CAST(:job AS TEXT) IS NULL OR job = :job)
    AND (CAST(:month AS INTEGER) IS NULL OR month = :month)
GROUP BY line ORDER BY line;

-- name: receipts
-- Leases of which rows were accepted, behind a cursor. Only jobs are looked into that have any.
SELECT job, chunk, leases.vehicle, coalesce(owner, '') AS owner, month, granted_ms, consent_version,
    rows_done, compute_us, energy_mwh, energy_micro_per_kwh, pay_micro_per_h, energy_pay_micro, fee_pay_micro
FROM leases LEFT JOIN consents ON consents.vehicle = leases.vehicle AND version = consent_version
WHERE (job, chunk) > (:after_job, :after_chunk)
    AND job IN (
        SELECT job FROM receipt_sums
        WHERE (CAST(:vehicle AS TEXT) IS NULL OR vehicle = :vehicle) AND (CAST(:job AS TEXT) IS NULL OR job = :job)
            AND (CAST(:month AS INTEGER) IS NULL OR month = :month)
    )
    AND rows_done > 0
    AND (CAST(:owner AS TEXT) IS NULL OR owner = :owner)
    AND (CAST(:vehicle AS TEXT) IS NULL OR leases.vehicle = :vehicle)
    AND (CAST(:month AS INTEGER) IS NULL OR month = :month)
ORDER BY job, chunk LIMIT :limit;

-- name: next_seq
-- The number that no result has had yet.
SELECT coalesce(max(seq) + 1, 1) FROM results;

-- name: rows_after
-- Results of a job behind a cursor, in order.
SELECT seq, results.job, results.vehicle, results.pieces, coalesce(results.payload, answers.payload) AS payload,
    payload_ref, accepted_ms, compute_ms, energy_mwh, pay_micro, answer, retracted
FROM results LEFT JOIN answers ON answers.job = results.job AND answers.number = results.answer
WHERE results.job = ? AND seq > ? ORDER BY seq LIMIT ?;

-- name: job_view
-- One job as clients see it.
SELECT id, name, model, state, row_count, terms, created_ms, ended_ms, error, rows_released_again,
    (SELECT coalesce(sum(stop - start), 0) FROM leases WHERE job = id AND ended IS NULL) AS rows_leased,
    CASE verified
        WHEN 0 THEN (SELECT coalesce(sum(rows_done), 0) FROM receipt_sums WHERE job = id)
        ELSE (SELECT coalesce(sum(results.row_count), 0) FROM results WHERE job = id)
    END AS rows_done,
    (SELECT coalesce(sum(compute_us), 0) FROM receipt_sums WHERE job = id) AS compute_us,
    (SELECT coalesce(sum(energy_mwh), 0) FROM receipt_sums WHERE job = id) AS energy_mwh,
    (SELECT coalesce(sum(energy_pay_micro + fee_pay_micro), 0) FROM receipt_sums WHERE job = id) AS pay_micro,
    (SELECT count(DISTINCT vehicle) FROM receipt_sums WHERE job = id) AS vehicles,
    (SELECT count(*) FROM failed_rows WHERE job = id) AS rows_failed,
    (SELECT count(*) FROM checks WHERE job = id AND checks.state = 0) AS rows_checked,
    (SELECT coalesce(-sum(results.row_count), 0) FROM results WHERE job = id AND retracted = 1) AS rows_retracted
FROM jobs WHERE id = ?;

-- name: ended_jobs
-- The ids of jobs that came to their end, the latest first.
SELECT id FROM jobs WHERE state <> 'running' ORDER BY ended_ms DESC, id LIMIT ?;
