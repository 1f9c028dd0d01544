-- A lease is a receipt: what its chunk took and earned, by what it promised when it was granted. Leases from before have
-- promised nothing and took nothing that is known; what was paid for them stays in the sums below.
ALTER TABLE leases ADD COLUMN consent_version INTEGER NOT NULL DEFAULT 0;
ALTER TABLE leases ADD COLUMN energy_micro_per_kwh INTEGER NOT NULL DEFAULT 0;
ALTER TABLE leases ADD COLUMN pay_micro_per_h INTEGER NOT NULL DEFAULT 0;
ALTER TABLE leases ADD COLUMN month INTEGER NOT NULL DEFAULT 0;  -- local, as 202611: whose statement it is in
ALTER TABLE leases ADD COLUMN rows_done INTEGER NOT NULL DEFAULT 0;
ALTER TABLE leases ADD COLUMN compute_us INTEGER NOT NULL DEFAULT 0;
ALTER TABLE leases ADD COLUMN energy_mwh INTEGER NOT NULL DEFAULT 0;
ALTER TABLE leases ADD COLUMN energy_pay_micro INTEGER NOT NULL DEFAULT 0;
ALTER TABLE leases ADD COLUMN fee_pay_micro INTEGER NOT NULL DEFAULT 0;

-- The sums of the receipts of each vehicle, job, month and consent; without month what was paid before there were receipts.
CREATE TABLE receipt_sums (
    job TEXT NOT NULL,
    vehicle TEXT NOT NULL,
    month INTEGER NOT NULL,
    consent_version INTEGER NOT NULL,
    rows_done INTEGER NOT NULL,
    compute_us INTEGER NOT NULL,
    energy_mwh INTEGER NOT NULL,
    energy_pay_micro INTEGER NOT NULL,
    fee_pay_micro INTEGER NOT NULL,
    PRIMARY KEY (job, vehicle, month, consent_version)
) WITHOUT ROWID;

INSERT INTO receipt_sums
SELECT job, vehicle, 0, 0, rows_done, CAST(round(compute_ms * 1000) AS INTEGER), energy_mwh, 0, pay_micro FROM shares;

DROP TABLE shares;
