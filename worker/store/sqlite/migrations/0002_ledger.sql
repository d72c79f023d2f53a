-- The ledger: who trains, what was trained, what was live, what is to be told, what was commanded.

CREATE TABLE lease (
    name TEXT NOT NULL PRIMARY KEY,
    owner TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    granted_at_ms INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE training_run (
    seq INTEGER PRIMARY KEY,
    run_id TEXT NOT NULL UNIQUE,
    scenario TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('offline', 'lora')),
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'trained', 'failed', 'skipped')),
    trigger TEXT NOT NULL, -- JSON
    window_lo INTEGER NOT NULL,
    window_hi INTEGER NOT NULL,
    requested_at_ms INTEGER NOT NULL,
    apply INTEGER,
    nonce TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    lease TEXT, -- under which the epoch was given; NULL: never started
    owner TEXT,
    started_at_ms INTEGER,
    ended_at_ms INTEGER,
    progress REAL NOT NULL,
    progress_text TEXT NOT NULL,
    reason TEXT,
    model_id TEXT,
    UNIQUE (scenario, kind, window_hi, nonce)
) STRICT;

CREATE UNIQUE INDEX training_run_one_running ON training_run (scenario) WHERE state = 'running';
CREATE INDEX training_run_by_state ON training_run (state);

CREATE TABLE trigger_state (
    scenario TEXT NOT NULL PRIMARY KEY,
    trained_upto INTEGER,
    trained_episodes INTEGER NOT NULL,
    trained_sessions INTEGER NOT NULL,
    last_success_at_ms INTEGER,
    last_attempt_at_ms INTEGER,
    failures INTEGER NOT NULL,
    not_before_ms INTEGER NOT NULL,
    trigger_errors INTEGER NOT NULL,
    last_trigger_error TEXT,
    paused INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE model (
    model_id TEXT NOT NULL PRIMARY KEY,
    scenario TEXT NOT NULL,
    version INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('offline', 'lora')),
    run_id TEXT NOT NULL REFERENCES training_run (run_id),
    created_at_ms INTEGER NOT NULL,
    uri TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    lineage TEXT NOT NULL, -- JSON
    metrics TEXT NOT NULL, -- JSON
    gate_verdict TEXT NOT NULL CHECK (gate_verdict IN ('blessed', 'rejected', 'not_evaluable')),
    gate_reasons TEXT NOT NULL, -- JSON
    UNIQUE (scenario, version)
) STRICT;

CREATE TABLE model_alias (
    scenario TEXT NOT NULL,
    alias TEXT NOT NULL,
    model_id TEXT NOT NULL REFERENCES model (model_id),
    PRIMARY KEY (scenario, alias)
) STRICT, WITHOUT ROWID;

CREATE TABLE deployment (
    seq INTEGER PRIMARY KEY,
    deployment_id TEXT NOT NULL UNIQUE,
    scenario TEXT NOT NULL,
    model_id TEXT NOT NULL REFERENCES model (model_id),
    previous_model_id TEXT,
    action TEXT NOT NULL CHECK (action IN ('apply', 'rollback')),
    applicator TEXT NOT NULL,
    target TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('started', 'verified', 'failed')),
    "by" TEXT NOT NULL,
    forced INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    detail TEXT NOT NULL
) STRICT;

CREATE INDEX deployment_by_scenario ON deployment (scenario);

CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY,
    event_id TEXT NOT NULL UNIQUE,
    type TEXT NOT NULL,
    scenario TEXT NOT NULL,
    routing_key TEXT NOT NULL,
    body BLOB NOT NULL,
    created_at_ms INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    sent_at_ms INTEGER
) STRICT;

CREATE INDEX outbox_unsent ON outbox (seq) WHERE sent_at_ms IS NULL;
CREATE INDEX outbox_by_scenario ON outbox (scenario);

CREATE TABLE command (
    seq INTEGER PRIMARY KEY,
    command_id TEXT NOT NULL UNIQUE,
    command TEXT NOT NULL,
    scenario TEXT,
    body BLOB NOT NULL,
    received_at_ms INTEGER NOT NULL,
    reply_to TEXT,
    correlation_id TEXT,
    status TEXT NOT NULL CHECK (status IN ('accepted', 'done', 'refused', 'failed')),
    result TEXT NOT NULL, -- JSON
    error TEXT,
    ended_at_ms INTEGER
) STRICT;

CREATE INDEX command_unfinished ON command (seq) WHERE status = 'accepted';
