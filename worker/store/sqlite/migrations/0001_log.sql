-- The log of records, what is derived from it, and the counters that make its facts cheap.

-- One row, written by the health probe.
CREATE TABLE probe (probe_no INTEGER PRIMARY KEY CHECK (probe_no = 1), at_ms INTEGER NOT NULL);
INSERT INTO probe VALUES (1, 0);

-- A scenario and its counters, kept in the transactions that change them.
CREATE TABLE scenario (
    scenario_no INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    records INTEGER NOT NULL DEFAULT 0,
    batches INTEGER NOT NULL DEFAULT 0,
    duplicate_batches INTEGER NOT NULL DEFAULT 0,
    duplicate_records INTEGER NOT NULL DEFAULT 0,
    unknown_fields INTEGER NOT NULL DEFAULT 0,
    quarantined INTEGER NOT NULL DEFAULT 0,
    sessions INTEGER NOT NULL DEFAULT 0,
    episodes INTEGER NOT NULL DEFAULT 0,
    open_tasks INTEGER NOT NULL DEFAULT 0,
    trainings_completed INTEGER NOT NULL DEFAULT 0,
    models_applied INTEGER NOT NULL DEFAULT 0,
    last_batch_no INTEGER NOT NULL DEFAULT 0,
    first_record_at_ms INTEGER,
    last_record_at_ms INTEGER
) STRICT;
