-- pending_sessions --
-- LEFT JOIN: a row that is gone is damage too.
SELECT
    scenario.name, session.position, batch.received_at_ms, coalesce(producer_id, '-'),
    CAST(record.body AS BLOB), record.check_sum
FROM session
JOIN scenario USING (scenario_no)
LEFT JOIN record ON record.position = session.position
JOIN batch ON batch.batch_no = session.position >> 14
LEFT JOIN producer USING (producer_no)
WHERE session.position IS NOT NULL AND session.counted = 0
    AND session.position NOT IN (SELECT row_no FROM damage WHERE table_name = 'record')
    AND (?2 IS NULL OR scenario.name IN (SELECT value FROM json_each(?2)))
ORDER BY session.position LIMIT ?1;

-- pending_graphs --
SELECT scenario.name, graph.position, batch.received_at_ms, CAST(record.body AS BLOB), record.check_sum
FROM graph
JOIN scenario USING (scenario_no)
LEFT JOIN record ON record.position = graph.position
JOIN batch ON batch.batch_no = graph.position >> 14
WHERE graph.projected = 0 AND graph.position NOT IN (SELECT row_no FROM damage WHERE table_name = 'record')
    AND (?2 IS NULL OR scenario.name IN (SELECT value FROM json_each(?2)))
ORDER BY graph.position LIMIT ?1;

-- tasks_due_now --
-- In the order of the log: a session, which comes with or after the last of its tasks, is not counted before them.
SELECT task_no, scenario.name, task_id, actions, changed_upto, last_received_ms, session_no, projected_upto, projected_idle
FROM task JOIN scenario USING (scenario_no)
WHERE due = 1
    AND (projected_upto = 0 OR actions <= :huge OR last_received_ms NOT BETWEEN :now_ms - actions AND :now_ms)
    AND task_no NOT IN (SELECT task_no FROM damage WHERE task_no IS NOT NULL)
    AND NOT EXISTS (
        SELECT 1 FROM session JOIN damage ON damage.table_name = 'record' AND damage.row_no = session.position
        WHERE session.session_no = task.session_no
    )
    AND (:served IS NULL OR scenario.name IN (SELECT value FROM json_each(:served)))
ORDER BY changed_upto, task_no;

-- tasks_due_idle --
SELECT task_no, scenario.name, task_id, actions, changed_upto, last_received_ms, session_no, projected_upto, projected_idle
FROM task JOIN scenario USING (scenario_no)
WHERE due = 2 AND last_received_ms <= ?1
    AND task_no NOT IN (SELECT task_no FROM damage WHERE task_no IS NOT NULL)
    AND NOT EXISTS (
        SELECT 1 FROM session JOIN damage ON damage.table_name = 'record' AND damage.row_no = session.position
        WHERE session.session_no = task.session_no
    )
    AND (?2 IS NULL OR scenario.name IN (SELECT value FROM json_each(?2)))
ORDER BY last_received_ms;

-- actions_of_tasks --
-- One row a task, not one an action: see ingest.py on steps.
SELECT
    wanted.value,
    (SELECT CAST(
         '[' || group_concat('[' || position || ',' || coalesce(check_sum, 'null') || ',' || body || ']') || ']' AS BLOB
     )
     FROM record WHERE task_no = wanted.value AND kind = 0)
FROM json_each(?) AS wanted;

-- rows_of_task --
-- Row by row, to find which of them is damaged. Of any kind: that may be what is damaged.
SELECT position, kind, CAST(body AS BLOB), check_sum FROM record WHERE task_no = ?;

-- places_of_batches --
SELECT json_group_array(json_array(
    batch_no, received_at_ms, coalesce(producer_id, '-'),
    coalesce(producer_id, batch_id), coalesce(epoch, 0), coalesce(batch_seq, 0)
))
FROM json_each(?) AS wanted
CROSS JOIN batch ON batch.batch_no = wanted.value
LEFT JOIN producer USING (producer_no);

-- sessions_by_number --
SELECT session_no, session.position, CAST(record.body AS BLOB), record.check_sum
FROM json_each(?) AS wanted
CROSS JOIN session ON session.session_no = wanted.value
LEFT JOIN record ON record.position = session.position;

-- projected_tasks --
SELECT json_group_array(json_array(task_id, task_no, projected_upto, projected_idle))
FROM json_each(?2) AS wanted
CROSS JOIN task ON task.scenario_no = ?1 AND task.task_id = wanted.value;

-- uncounted_sessions --
SELECT json_group_array(session_id)
FROM json_each(?2) AS wanted
CROSS JOIN session ON session.scenario_no = ?1 AND session.session_id = wanted.value
WHERE position IS NOT NULL AND counted = 0;

-- unprojected_graphs --
SELECT json_group_array(position)
FROM json_each(?) AS wanted
CROSS JOIN graph ON graph.position = wanted.value
WHERE projected = 0;

-- mark_tasks --
UPDATE task SET
    projected_upto = done.value ->> 1,
    projected_idle = done.value ->> 2,
    open_tail = done.value ->> 3
FROM json_each(?) AS done
WHERE task.task_no = done.value ->> 0;

-- mark_sessions --
UPDATE session SET counted = 1
WHERE scenario_no = ?1 AND session_id IN (SELECT value FROM json_each(?2));

-- mark_graphs --
UPDATE graph SET projected = 1 WHERE position IN (SELECT value FROM json_each(?));

-- delete_episodes --
DELETE FROM episode WHERE origin IN (SELECT value FROM json_each(?)) RETURNING learn_model;

-- insert_episode --
INSERT INTO episode (
    episode_id, scenario_no, origin, learn_model, outcome, score, ended_at_ms, holdout,
    task_id, session_id, group_id, worker_id, body
)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- add_count --
INSERT INTO aggregate (scenario_no, day, holdout, source, measure, names, producer, value)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET value = value + excluded.value;

-- delete_zero_counts --
DELETE FROM aggregate INDEXED BY aggregate_gone WHERE scenario_no = ? AND value = 0;

-- count_projection --
UPDATE scenario SET
    episodes = episodes + :episodes,
    open_tasks = open_tasks - :first_times,
    counted_sessions = counted_sessions + :counted_sessions
WHERE scenario_no = :scenario_no;

-- count_episodes_of --
INSERT INTO episode_count (scenario_no, learn_model, episodes) VALUES (?, ?, ?)
ON CONFLICT DO UPDATE SET episodes = episodes + excluded.episodes;

-- forget_tasks --
UPDATE task SET projected_upto = 0, projected_idle = 0, open_tail = 0 WHERE scenario_no = ? AND projected_upto > 0;

-- forget_sessions --
UPDATE session SET counted = 0 WHERE scenario_no = ? AND counted = 1;

-- forget_graphs --
UPDATE graph SET projected = 0 WHERE scenario_no = ? AND projected = 1;

-- forget_episodes --
DELETE FROM episode WHERE scenario_no = ?;

-- forget_episode_counts --
DELETE FROM episode_count WHERE scenario_no = ?;

-- forget_counts --
DELETE FROM aggregate WHERE scenario_no = ?;

-- recount_scenario --
UPDATE scenario SET
    projected_under = coalesce(?2, projected_under),
    episodes = 0,
    counted_sessions = 0,
    open_tasks = (SELECT count(*) FROM task WHERE task.scenario_no = scenario.scenario_no AND actions > 0)
WHERE scenario_no = ?1;

-- projected_under --
SELECT projected_under FROM scenario WHERE name = ?;
