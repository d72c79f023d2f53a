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
    last_record_at_ms INTEGER,
    projected_under TEXT
) STRICT;

-- A producer's epoch as a small number, so that a batch's key costs a few bytes.
CREATE TABLE producer (
    producer_no INTEGER PRIMARY KEY,
    scenario_no INTEGER NOT NULL,
    producer_id TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    UNIQUE (scenario_no, producer_id, epoch)
) STRICT;

-- Every batch that was stored. Its number is its place in the log.
CREATE TABLE batch (
    batch_no INTEGER PRIMARY KEY,
    scenario_no INTEGER NOT NULL,
    producer_no INTEGER, -- with batch_seq: one road of identity
    batch_seq INTEGER,
    batch_id TEXT, -- the other road
    content_hash BLOB NOT NULL,
    received_at_ms INTEGER NOT NULL,
    n_records INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX batch_by_seq ON batch (producer_no, batch_seq) WHERE producer_no IS NOT NULL;
CREATE UNIQUE INDEX batch_by_id ON batch (scenario_no, batch_id) WHERE batch_id IS NOT NULL;

-- The records, in the order of the log: position = batch_no * 16384 + index in the batch. `body` is a JSON array of the
-- record's values in the order of its type's fields (worker/store/record_rows.py), `null` for what was not sent.
-- A column per field cost 7.3 us a record, one array 2.5 us (measured, 2 cores, 24 fields of an action).
CREATE TABLE record (
    position INTEGER PRIMARY KEY,
    kind INTEGER NOT NULL, -- see record_rows.KINDS; 0 is an action
    task_no INTEGER,
    sequence INTEGER, -- event_id, or -position where none was sent
    body TEXT NOT NULL
) STRICT;
-- An action's identity and the way to all records of a task at once.
CREATE UNIQUE INDEX record_by_task ON record (task_no, sequence) WHERE task_no IS NOT NULL;
-- The few that are no actions, without reading all that are.
CREATE INDEX record_by_kind ON record (kind) WHERE kind <> 0;

-- Identity of records that have no other and were sent with a `record_id`.
CREATE TABLE record_identity (
    scenario_no INTEGER NOT NULL,
    record_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (scenario_no, record_id)
) STRICT, WITHOUT ROWID;

-- A session as soon as somebody names it; it has ended when its learn stats are stored, at `position`.
CREATE TABLE session (
    session_no INTEGER PRIMARY KEY,
    scenario_no INTEGER NOT NULL,
    session_id TEXT NOT NULL,
    position INTEGER,
    ended_at_ms INTEGER, -- its own timestamp where sent, else when it came in
    group_id TEXT,
    phase TEXT,
    counted INTEGER NOT NULL DEFAULT 0,
    UNIQUE (scenario_no, session_id)
) STRICT;
CREATE INDEX session_ended ON session (scenario_no, ended_at_ms) WHERE position IS NOT NULL;
CREATE INDEX session_pending ON session (session_no) WHERE position IS NOT NULL AND counted = 0;

-- A task as soon as somebody names it.
CREATE TABLE task (
    task_no INTEGER PRIMARY KEY,
    scenario_no INTEGER NOT NULL,
    task_id TEXT NOT NULL,
    actions INTEGER NOT NULL, -- how many it has
    changed_upto INTEGER NOT NULL, -- highest batch_no of its actions and its session, 0: no actions yet
    last_received_ms INTEGER NOT NULL,
    terminal INTEGER NOT NULL, -- it has a terminal action
    session_no INTEGER, -- the ended session it belongs to; never changes once set
    projected_upto INTEGER NOT NULL DEFAULT 0, -- changed_upto when it was projected, 0: never
    projected_idle INTEGER NOT NULL DEFAULT 0,
    open_tail INTEGER NOT NULL DEFAULT 0,
    -- 1: to be projected now, 2: when it is idle, 0: nothing to do
    due INTEGER NOT NULL AS (
        CASE
            WHEN changed_upto > projected_upto THEN
                CASE WHEN terminal OR session_no IS NOT NULL OR projected_upto > 0 THEN 1 ELSE 2 END
            WHEN open_tail AND NOT projected_idle THEN 2
            ELSE 0
        END
    ) VIRTUAL,
    UNIQUE (scenario_no, task_id)
) STRICT;
CREATE INDEX task_due_now ON task (task_no) WHERE due = 1;
CREATE INDEX task_due_when_idle ON task (last_received_ms) WHERE due = 2;

-- Which tasks belong to which session, known from either side, before or after it ended.
CREATE TABLE session_task (
    session_no INTEGER NOT NULL,
    task_no INTEGER NOT NULL,
    PRIMARY KEY (session_no, task_no)
) STRICT, WITHOUT ROWID;

-- Inferred dependency graphs.
CREATE TABLE graph (
    position INTEGER PRIMARY KEY,
    scenario_no INTEGER NOT NULL,
    ended_at_ms INTEGER NOT NULL,
    projected INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX graph_newest ON graph (scenario_no, ended_at_ms);
CREATE INDEX graph_pending ON graph (position) WHERE projected = 0;

-- Projection: episodes. `origin` is the task's number, or -position of the record that is no part of a task.
CREATE TABLE episode (
    episode_no INTEGER PRIMARY KEY,
    episode_id TEXT NOT NULL,
    scenario_no INTEGER NOT NULL,
    origin INTEGER NOT NULL,
    learn_model TEXT NOT NULL,
    outcome TEXT NOT NULL,
    score REAL NOT NULL, -- as score_of gives it
    ended_at_ms INTEGER NOT NULL,
    holdout INTEGER NOT NULL,
    task_id TEXT,
    session_id TEXT,
    group_id TEXT,
    worker_id INTEGER,
    body TEXT NOT NULL -- the whole, JSON
) STRICT;
CREATE INDEX episode_by_origin ON episode (origin);
CREATE INDEX episode_by_time ON episode (scenario_no, ended_at_ms);
CREATE INDEX episode_known ON episode (scenario_no, learn_model, ended_at_ms, outcome, score) WHERE outcome <> 'unknown';

-- Projection: counts, which add and subtract.
CREATE TABLE aggregate (
    scenario_no INTEGER NOT NULL,
    day INTEGER NOT NULL,
    holdout INTEGER NOT NULL,
    source TEXT NOT NULL,
    measure TEXT NOT NULL,
    names TEXT NOT NULL, -- JSON array
    value INTEGER NOT NULL,
    PRIMARY KEY (scenario_no, day, holdout, source, measure, names)
) STRICT, WITHOUT ROWID;
CREATE INDEX aggregate_gone ON aggregate (scenario_no) WHERE value = 0;

-- Messages and records that were not stored, and why.
CREATE TABLE quarantine (
    entry_id INTEGER PRIMARY KEY,
    scenario_no INTEGER NOT NULL,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    received_at_ms INTEGER NOT NULL,
    size INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    body BLOB NOT NULL,
    truncated INTEGER NOT NULL,
    headers TEXT NOT NULL, -- JSON
    seen INTEGER NOT NULL DEFAULT 1,
    replayed_at_ms INTEGER,
    UNIQUE (scenario_no, reason, sha256)
) STRICT;
