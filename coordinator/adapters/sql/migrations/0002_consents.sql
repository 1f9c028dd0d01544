-- What owners agreed to. Versions of a vehicle follow each other, without a gap unless a backup
-- was restored, and none is ever changed or deleted.

CREATE TABLE consents (
    vehicle TEXT NOT NULL,
    version INTEGER NOT NULL,
    owner TEXT NOT NULL,
    document TEXT NOT NULL,  -- JSON of OwnerPolicy
    set_by TEXT NOT NULL,
    set_ms INTEGER NOT NULL,
    PRIMARY KEY (vehicle, version)
) WITHOUT ROWID;
