-- page_of_episodes --
SELECT ended_at_ms, episode_id, body FROM episode
WHERE scenario_no = :scenario_no AND ended_at_ms >= :after_ms AND (ended_at_ms, episode_id) > (:after_ms, :after_id)
    AND ended_at_ms >= :since_ms AND ended_at_ms <= :until_ms
    AND (:learn_model IS NULL OR learn_model = :learn_model)
    AND (:outcome IS NULL OR outcome = :outcome)
    AND (:min_score IS NULL OR score >= :min_score)
    AND (:group_id IS NULL OR group_id = :group_id)
    AND (:session_id IS NULL OR session_id = :session_id)
    AND (:task_id IS NULL OR task_id = :task_id)
    AND (:worker_id IS NULL OR worker_id = :worker_id)
    AND (:holdout IS NULL OR holdout = :holdout)
ORDER BY ended_at_ms, episode_id LIMIT :limit OFFSET :offset;

-- page_of_episodes_backwards --
SELECT ended_at_ms, episode_id, body FROM episode
WHERE scenario_no = :scenario_no AND ended_at_ms <= :after_ms AND (ended_at_ms, episode_id) < (:after_ms, :after_id)
    AND ended_at_ms >= :since_ms AND ended_at_ms <= :until_ms
    AND (:learn_model IS NULL OR learn_model = :learn_model)
    AND (:outcome IS NULL OR outcome = :outcome)
    AND (:min_score IS NULL OR score >= :min_score)
    AND (:group_id IS NULL OR group_id = :group_id)
    AND (:session_id IS NULL OR session_id = :session_id)
    AND (:task_id IS NULL OR task_id = :task_id)
    AND (:worker_id IS NULL OR worker_id = :worker_id)
    AND (:holdout IS NULL OR holdout = :holdout)
ORDER BY ended_at_ms DESC, episode_id DESC LIMIT :limit OFFSET :offset;

-- count_episodes --
SELECT count(*) FROM episode
WHERE scenario_no = :scenario_no
    AND ended_at_ms >= :since_ms AND ended_at_ms <= :until_ms
    AND (:learn_model IS NULL OR learn_model = :learn_model)
    AND (:outcome IS NULL OR outcome = :outcome)
    AND (:min_score IS NULL OR score >= :min_score)
    AND (:group_id IS NULL OR group_id = :group_id)
    AND (:session_id IS NULL OR session_id = :session_id)
    AND (:task_id IS NULL OR task_id = :task_id)
    AND (:worker_id IS NULL OR worker_id = :worker_id)
    AND (:holdout IS NULL OR holdout = :holdout);

-- rolling_outcomes --
-- Ties of time are ordered by what is counted, so that the sample is the same whatever came first.
SELECT count(*), avg(outcome = 'success'), avg(score) FROM (
    SELECT outcome, score FROM episode
    WHERE scenario_no = ? AND learn_model = ? AND outcome <> 'unknown'
    ORDER BY ended_at_ms DESC, outcome DESC, score DESC LIMIT ?
);

-- ended_sessions --
SELECT session.position, batch.received_at_ms, CAST(record.body AS BLOB), record.check_sum
FROM session
LEFT JOIN record ON record.position = session.position
JOIN batch ON batch.batch_no = session.position >> 14
WHERE session.scenario_no = :scenario_no AND session.position IS NOT NULL
    AND session.ended_at_ms >= :since_ms AND session.ended_at_ms <= :until_ms
    AND (:group_id IS NULL OR session.group_id = :group_id)
    AND (:phase IS NULL OR session.phase = :phase)
ORDER BY session.ended_at_ms DESC, session.session_id DESC LIMIT :limit;

-- ended_sessions_of_many --
-- The newest of each producer. Chosen by their places alone, without their bodies.
SELECT chosen.position, batch.received_at_ms, CAST(record.body AS BLOB), record.check_sum
FROM (
    SELECT position, ended_at_ms, session_id,
        row_number() OVER (PARTITION BY producer ORDER BY ended_at_ms DESC, session_id DESC) AS place
    FROM (
        SELECT session.position, ended_at_ms, session_id, coalesce(producer_id, '-') AS producer
        FROM session
        JOIN batch ON batch.batch_no = session.position >> 14
        LEFT JOIN producer USING (producer_no)
        WHERE session.scenario_no = :scenario_no AND session.position IS NOT NULL
            AND session.ended_at_ms >= :since_ms AND session.ended_at_ms <= :until_ms
            AND (:group_id IS NULL OR session.group_id = :group_id)
            AND (:phase IS NULL OR session.phase = :phase)
        ORDER BY ended_at_ms DESC, session_id DESC LIMIT 100000
    )
) AS chosen
LEFT JOIN record ON record.position = chosen.position
JOIN batch ON batch.batch_no = chosen.position >> 14
WHERE place <= :most_of_one
ORDER BY ended_at_ms DESC, session_id DESC LIMIT :limit;

-- ended_session --
SELECT session.position, batch.received_at_ms, CAST(record.body AS BLOB), record.check_sum
FROM session
LEFT JOIN record ON record.position = session.position
JOIN batch ON batch.batch_no = session.position >> 14
WHERE session.scenario_no = :scenario_no AND session.session_id = :session_id AND session.position IS NOT NULL;

-- newest_graphs --
SELECT graph.position, batch.received_at_ms, CAST(record.body AS BLOB), record.check_sum
FROM graph
LEFT JOIN record ON record.position = graph.position
JOIN batch ON batch.batch_no = graph.position >> 14
WHERE graph.scenario_no = ?
ORDER BY graph.ended_at_ms DESC, graph.position DESC LIMIT ?;

-- counts --
SELECT json_group_array(json_array(source, measure, json(names), total)) FROM (
    SELECT source, measure, names, sum(value) AS total FROM aggregate
    WHERE scenario_no IN (SELECT scenario_no FROM scenario WHERE :scenario IS NULL OR name = :scenario)
        AND (:holdout IS NULL OR holdout = :holdout)
        AND (:since_day IS NULL OR day >= :since_day)
    GROUP BY source, measure, names
    HAVING total <> 0
);

-- facts --
SELECT
    name, records, batches, duplicate_batches, duplicate_records, unknown_fields, quarantined, sessions,
    counted_sessions, episodes,
    (SELECT json_group_object(learn_model, episode_count.episodes) FROM episode_count
     WHERE episode_count.scenario_no = scenario.scenario_no AND episode_count.episodes > 0),
    open_tasks, trainings_completed, models_applied, last_batch_no, first_record_at_ms, last_record_at_ms
FROM scenario WHERE name = ?;

-- scenario_names --
SELECT name FROM scenario ORDER BY name;
