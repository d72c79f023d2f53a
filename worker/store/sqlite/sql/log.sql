-- scenario_no --
SELECT scenario_no FROM scenario WHERE name = ?;

-- page_of_all --
-- CROSS JOIN keeps the batches outside, so both orders come from the tables and a page costs what it holds.
SELECT
    batch.batch_no, batch.received_at_ms, coalesce(producer_id, '-'), record.position, record.kind, record.task_no,
    task.task_id, CAST(record.body AS BLOB), record.check_sum
FROM batch
CROSS JOIN record ON record.position >= max(batch.batch_no << 14, :from) AND record.position < (batch.batch_no + 1) << 14
LEFT JOIN task ON task.task_no = record.task_no
LEFT JOIN producer USING (producer_no)
WHERE batch.scenario_no = :scenario_no AND batch.batch_no >= :from >> 14 AND (:kind IS NULL OR record.kind = :kind)
ORDER BY batch.batch_no, record.position LIMIT :limit;

-- page_of_others --
SELECT
    batch.batch_no, batch.received_at_ms, coalesce(producer_id, '-'), record.position, record.kind, record.task_no,
    task.task_id, CAST(record.body AS BLOB), record.check_sum
FROM record
JOIN batch ON batch.batch_no = record.position >> 14
LEFT JOIN task ON task.task_no = record.task_no
LEFT JOIN producer USING (producer_no)
WHERE record.kind = :kind AND record.kind <> 0 AND record.position >= :from AND batch.scenario_no = :scenario_no
ORDER BY record.position LIMIT :limit;

-- page_of_task --
SELECT
    batch.batch_no, batch.received_at_ms, coalesce(producer_id, '-'), record.position, record.kind, record.task_no,
    task.task_id, CAST(record.body AS BLOB), record.check_sum
FROM task
JOIN record ON record.task_no = task.task_no
JOIN batch ON batch.batch_no = record.position >> 14
LEFT JOIN producer USING (producer_no)
WHERE task.scenario_no = :scenario_no AND task.task_id = :task_id AND record.position >= :from
    AND (:kind IS NULL OR record.kind = :kind)
ORDER BY record.position LIMIT :limit;

-- tasks_named --
SELECT task_no, wanted.value, coalesce(actions, 0)
FROM json_each(:task_ids) AS wanted
LEFT JOIN task ON task.scenario_no = :scenario_no AND task.task_id = wanted.value
ORDER BY wanted.key;
