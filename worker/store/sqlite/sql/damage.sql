-- all_damage --
SELECT table_name, row_no, scenario.name, task.task_id, detail
FROM damage JOIN scenario USING (scenario_no) LEFT JOIN task ON task.task_no = damage.task_no
ORDER BY found_at_ms, table_name, row_no;

-- insert_damage --
INSERT INTO damage (table_name, row_no, scenario_no, task_no, detail, found_at_ms)
SELECT :table, :row, scenario_no, :task_no, :detail, :now_ms FROM scenario WHERE name = :scenario
ON CONFLICT DO NOTHING;

-- forget_damage --
-- A rebuild looks at everything again, so what was repaired (by a restored table, say) is learnt from again.
DELETE FROM damage WHERE scenario_no = ?;
