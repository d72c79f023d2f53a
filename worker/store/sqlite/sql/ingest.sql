-- last_numbers --
-- The highest number of each kind that was given so far. scenario remembers batches that retention may have dropped.
SELECT
    (SELECT coalesce(max(last_batch_no), 0) FROM scenario),
    (SELECT coalesce(max(task_no), 0) FROM task),
    (SELECT coalesce(max(session_no), 0) FROM session);

-- find_producer --
SELECT producer_no FROM producer WHERE scenario_no = ? AND producer_id = ? AND epoch = ?;

-- insert_producer --
INSERT INTO producer (scenario_no, producer_id, epoch) VALUES (?, ?, ?) RETURNING producer_no;

-- insert_batch --
INSERT INTO batch (batch_no, scenario_no, producer_no, batch_seq, batch_id, content_hash, received_at_ms, n_records)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING;

-- delete_batches_from --
DELETE FROM batch WHERE batch_no >= ?;

-- find_batch_by_seq --
SELECT batch_no, content_hash FROM batch WHERE producer_no = ? AND batch_seq = ?;

-- find_batch_by_id --
SELECT batch_no, content_hash FROM batch WHERE scenario_no = ? AND batch_id = ?;

-- find_tasks --
-- CROSS JOIN keeps the names outside: the planner would rather read every task of the scenario (8 times slower at 10,000).
-- One row and one step, however many tasks: each step gives up the interpreter's lock, and a busy event loop may keep
-- it for the length of its switch interval.
SELECT json_group_array(json_array(task.task_id, task.task_no, task.actions, task.session_no))
FROM json_each(?2) AS wanted
CROSS JOIN task ON task.scenario_no = ?1 AND task.task_id = wanted.value;

-- find_sessions --
SELECT json_group_array(json_array(session.session_id, session.session_no, session.position))
FROM json_each(?2) AS wanted
CROSS JOIN session ON session.scenario_no = ?1 AND session.session_id = wanted.value;

-- insert_session --
INSERT INTO session (session_no, scenario_no, session_id) VALUES (?, ?, ?);

-- end_session --
UPDATE session SET position = ?, ended_at_ms = ?, group_id = ?, phase = ? WHERE session_no = ?;

-- insert_identity --
INSERT INTO record_identity (scenario_no, record_id, position) VALUES (?, ?, ?) ON CONFLICT DO NOTHING;

-- find_identity --
SELECT position FROM record_identity WHERE scenario_no = ? AND record_id = ?;

-- insert_record --
INSERT INTO record (position, kind, task_no, sequence, body, check_sum) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING;

-- missing_records --
SELECT json_group_array(value) FROM json_each(?) WHERE NOT EXISTS (SELECT 1 FROM record WHERE position = value);

-- find_action --
SELECT position FROM record WHERE task_no = ? AND sequence = ?;

-- get_record --
SELECT record.position, record.kind, record.task_no, task.task_id, CAST(record.body AS BLOB), record.check_sum
FROM record LEFT JOIN task ON task.task_no = record.task_no
WHERE record.position = ?;

-- insert_graph --
INSERT INTO graph (position, scenario_no, ended_at_ms) VALUES (?, ?, ?);

-- touch_task --
INSERT INTO task (task_no, scenario_no, task_id, actions, changed_upto, last_received_ms, terminal, session_no)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET
    actions = actions + excluded.actions,
    changed_upto = max(changed_upto, excluded.changed_upto),
    last_received_ms = max(last_received_ms, excluded.last_received_ms),
    terminal = max(terminal, excluded.terminal),
    session_no = coalesce(session_no, excluded.session_no);

-- link_task --
INSERT INTO session_task (session_no, task_no) VALUES (?, ?) ON CONFLICT DO NOTHING;

-- close_tasks_of_session --
-- A task that has no actions yet stays as it is but for the link: there is nothing to project.
UPDATE task SET session_no = ?1, changed_upto = CASE WHEN actions > 0 THEN max(changed_upto, ?2) ELSE changed_upto END
WHERE session_no IS NULL AND task_no IN (SELECT task_no FROM session_task WHERE session_no = ?1);

-- count_ingest --
UPDATE scenario SET
    records = records + :records,
    batches = batches + :batches,
    duplicate_batches = duplicate_batches + :duplicate_batches,
    duplicate_records = duplicate_records + :duplicate_records,
    unknown_fields = unknown_fields + :unknown_fields,
    quarantined = quarantined + :quarantined,
    sessions = sessions + :sessions,
    open_tasks = open_tasks + :open_tasks,
    last_batch_no = max(last_batch_no, :last_batch_no),
    first_record_at_ms = min(coalesce(first_record_at_ms, :first_at_ms), coalesce(:first_at_ms, first_record_at_ms)),
    last_record_at_ms = max(coalesce(last_record_at_ms, :last_at_ms), coalesce(:last_at_ms, last_record_at_ms))
WHERE scenario_no = :scenario_no;
