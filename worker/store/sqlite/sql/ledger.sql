-- Statements of the ledger: leases, runs, trigger state, models, deployments, events, commands.
-- Rows become structs by the names of their columns, hence SELECT *.

-- acquire_lease --
-- No row comes back while somebody else holds it. Who holds it already keeps its epoch; any other holder gets a new one.
-- A clock that stepped back leaves a lease of the future, which nobody could take for as long as the step was:
-- one that was granted later than now by more than its own length counts as expired. The epoch keeps this safe.
INSERT INTO lease (name, owner, epoch, granted_at_ms, expires_at_ms)
VALUES (:name, :owner, 1, :now_ms, :now_ms + :ttl_ms)
ON CONFLICT (name) DO UPDATE SET
    owner = excluded.owner,
    epoch = CASE
        WHEN lease.owner = excluded.owner AND lease.expires_at_ms >= :now_ms THEN lease.epoch
        ELSE lease.epoch + 1
    END,
    granted_at_ms = excluded.granted_at_ms,
    expires_at_ms = excluded.expires_at_ms
WHERE lease.owner = excluded.owner
   OR lease.expires_at_ms < :now_ms
   OR lease.granted_at_ms - :now_ms > lease.expires_at_ms - lease.granted_at_ms
RETURNING epoch;

-- renew_lease --
UPDATE lease SET granted_at_ms = :now_ms, expires_at_ms = :now_ms + :ttl_ms
WHERE name = :name AND owner = :owner AND epoch = :epoch AND expires_at_ms >= :now_ms;

-- release_lease --
-- The row stays: its epoch must never be given out again.
UPDATE lease SET granted_at_ms = -1, expires_at_ms = -1
WHERE name = :name AND owner = :owner AND epoch = :epoch;

-- end_leases_of_the_dead --
-- Rows and epochs stay, as in release_lease.
UPDATE lease SET granted_at_ms = -1, expires_at_ms = -1
WHERE owner <> :owner AND expires_at_ms >= 0;

-- lease_epoch --
SELECT epoch FROM lease WHERE name = :name;

-- lease_epoch_of_run --
SELECT lease.epoch FROM lease JOIN training_run ON training_run.lease = lease.name WHERE training_run.run_id = :run_id;

-- holds_lease --
SELECT EXISTS (SELECT 1 FROM lease WHERE name = :lease AND owner = :owner AND epoch = :epoch);

-- insert_run --
-- The run_id or the window being there already is not an error: the first one counts.
INSERT INTO training_run (
    run_id, scenario, kind, state, trigger, window_lo, window_hi, requested_at_ms, apply, nonce, attempts, epoch, owner,
    started_at_ms, ended_at_ms, progress, progress_text, reason, model_id
) VALUES (
    :run_id, :scenario, :kind, :state, :trigger, :window_lo, :window_hi, :requested_at_ms, :apply, :nonce, :attempts,
    :epoch, :owner, :started_at_ms, :ended_at_ms, :progress, :progress_text, :reason, :model_id
)
ON CONFLICT DO NOTHING;

-- run_by_id --
SELECT * FROM training_run WHERE run_id = :run_id;

-- run_by_window --
SELECT * FROM training_run
WHERE scenario = :scenario AND kind = :kind AND window_hi = :window_hi AND nonce = :nonce;

-- other_running_run --
SELECT * FROM training_run WHERE scenario = :scenario AND state = 'running' AND run_id <> :run_id;

-- start_run --
UPDATE training_run SET
    state = 'running', owner = :owner, lease = :lease, epoch = :epoch, attempts = attempts + 1,
    started_at_ms = max(:now_ms, requested_at_ms), progress = 0, progress_text = '', reason = NULL
WHERE run_id = :run_id;

-- progress_run --
UPDATE training_run SET progress = :progress, progress_text = :progress_text WHERE run_id = :run_id;

-- finish_run --
UPDATE training_run SET
    state = :state, ended_at_ms = max(:ended_at_ms, started_at_ms), progress = :progress,
    progress_text = :progress_text, reason = :reason, model_id = :model_id
WHERE run_id = :run_id;

-- requeue_run --
UPDATE training_run SET
    state = 'queued', owner = NULL, started_at_ms = NULL, progress = 0, progress_text = '', reason = :reason
WHERE run_id = :run_id;

-- runs --
SELECT * FROM training_run
WHERE :scenario IS NULL OR scenario = :scenario
ORDER BY seq DESC LIMIT :limit;

-- runs_in_states --
SELECT * FROM training_run
WHERE state IN (SELECT value FROM json_each(:states)) AND (:scenario IS NULL OR scenario = :scenario)
ORDER BY seq DESC LIMIT :limit;

-- forget_fruitless_runs --
DELETE FROM training_run WHERE seq IN (
    SELECT seq FROM training_run
    WHERE state IN ('failed', 'skipped') AND ended_at_ms < :before_ms
        AND run_id NOT IN (SELECT run_id FROM model)
    ORDER BY seq LIMIT :limit
);

-- trigger_state --
SELECT * FROM trigger_state WHERE scenario = :scenario;

-- save_trigger_state --
INSERT INTO trigger_state (
    scenario, trained_upto, trained_episodes, trained_sessions, trained_by_model, last_success_at_ms,
    last_attempt_at_ms, failures, not_before_ms, trigger_errors, last_trigger_error, paused
) VALUES (
    :scenario, :trained_upto, :trained_episodes, :trained_sessions, :trained_by_model, :last_success_at_ms,
    :last_attempt_at_ms, :failures, :not_before_ms, :trigger_errors, :last_trigger_error, :paused
)
ON CONFLICT (scenario) DO UPDATE SET
    trained_upto = excluded.trained_upto, trained_episodes = excluded.trained_episodes,
    trained_sessions = excluded.trained_sessions, trained_by_model = excluded.trained_by_model,
    last_success_at_ms = excluded.last_success_at_ms,
    last_attempt_at_ms = excluded.last_attempt_at_ms, failures = excluded.failures,
    not_before_ms = excluded.not_before_ms, trigger_errors = excluded.trigger_errors,
    last_trigger_error = excluded.last_trigger_error, paused = excluded.paused;

-- count_training --
UPDATE scenario SET trainings_completed = trainings_completed + 1 WHERE scenario_no = :scenario_no;

-- count_applied --
UPDATE scenario SET models_applied = models_applied + 1 WHERE scenario_no = :scenario_no;

-- insert_model --
INSERT INTO model (
    model_id, scenario, version, kind, run_id, created_at_ms, uri, sha256, lineage, metrics, gate_verdict, gate_reasons
) VALUES (
    :model_id, :scenario, :version, :kind, :run_id, :created_at_ms, :uri, :sha256, :lineage, :metrics, :gate_verdict,
    :gate_reasons
);

-- model_by_id --
SELECT * FROM model WHERE model_id = :model_id;

-- newest_version --
SELECT coalesce(max(version), 0) FROM model WHERE scenario = :scenario;

-- models --
SELECT * FROM model WHERE scenario = :scenario AND (:kind IS NULL OR kind = :kind) ORDER BY version DESC LIMIT :limit;

-- aliases --
SELECT alias, model_id FROM model_alias WHERE scenario = :scenario ORDER BY alias;

-- set_alias --
INSERT INTO model_alias (scenario, alias, model_id) VALUES (:scenario, :alias, :model_id)
ON CONFLICT (scenario, alias) DO UPDATE SET model_id = excluded.model_id;

-- remove_alias --
DELETE FROM model_alias WHERE scenario = :scenario AND alias = :alias;

-- deployment_by_id --
SELECT * FROM deployment WHERE deployment_id = :deployment_id;

-- insert_deployment --
INSERT INTO deployment (
    deployment_id, scenario, model_id, previous_model_id, action, applicator, target, state, "by", forced, at_ms, detail,
    given_up_by, stranded
) VALUES (
    :deployment_id, :scenario, :model_id, :previous_model_id, :action, :applicator, :target, :state, :by, :forced,
    :at_ms, :detail, :given_up_by, :stranded
);

-- change_deployment --
-- All that ever changes of a deployment: how it ended, when, where it was brought to, and why.
UPDATE deployment SET state = :state, target = :target, detail = :detail, given_up_by = :given_up_by,
    stranded = :stranded, at_ms = max(:at_ms, at_ms)
WHERE deployment_id = :deployment_id;

-- deployments --
SELECT * FROM deployment
WHERE scenario = :scenario
    AND (:kind IS NULL OR (SELECT kind FROM model WHERE model.model_id = deployment.model_id) = :kind)
ORDER BY seq DESC LIMIT :limit;

-- insert_event --
-- The same change told twice is one event.
INSERT INTO outbox (event_id, type, scenario, routing_key, body, created_at_ms, attempts, sent_at_ms)
VALUES (:event_id, :type, :scenario, :routing_key, :body, :created_at_ms, :attempts, :sent_at_ms)
ON CONFLICT (event_id) DO NOTHING;

-- unsent_events --
-- By place, never by time: the clock may have stepped back between two events.
SELECT * FROM outbox WHERE sent_at_ms IS NULL ORDER BY seq LIMIT :limit;

-- mark_event_sent --
UPDATE outbox SET sent_at_ms = max(:now_ms, created_at_ms) WHERE event_id = :event_id AND sent_at_ms IS NULL;

-- mark_event_attempt --
UPDATE outbox SET attempts = attempts + 1 WHERE event_id = :event_id;

-- forget_sent_events --
DELETE FROM outbox WHERE seq IN (SELECT seq FROM outbox WHERE sent_at_ms < :before_ms ORDER BY seq LIMIT :limit);

-- events --
SELECT * FROM outbox ORDER BY seq DESC LIMIT :limit;

-- events_of_scenario --
SELECT * FROM outbox WHERE scenario = :scenario ORDER BY seq DESC LIMIT :limit;

-- insert_command --
INSERT INTO command (
    command_id, command, scenario, body, received_at_ms, reply_to, correlation_id, status, result, error, ended_at_ms
) VALUES (
    :command_id, :command, :scenario, :body, :received_at_ms, :reply_to, :correlation_id, :status, :result, :error,
    :ended_at_ms
)
ON CONFLICT (command_id) DO NOTHING;

-- command_by_id --
SELECT * FROM command WHERE command_id = :command_id;

-- finish_command --
-- Only the first end counts: its answer may have been sent.
UPDATE command SET status = :status, result = :result, error = :error, ended_at_ms = max(:now_ms, received_at_ms)
WHERE command_id = :command_id AND status = 'accepted';

-- drop_old_commands --
-- One that has not ended stays, however old.
DELETE FROM command
WHERE seq <= (SELECT max(seq) FROM command) - :kept AND status <> 'accepted' AND received_at_ms < :before_ms;

-- unfinished_commands --
SELECT * FROM command WHERE status = 'accepted' ORDER BY seq;
