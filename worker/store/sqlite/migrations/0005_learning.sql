-- Counts by producer, so that no one producer outweighs the others; what learning can see of sessions and of each learn
-- model's episodes, so that triggers count nothing else; what is pending in the order of the log.

CREATE TABLE aggregate_by_producer (
    scenario_no INTEGER NOT NULL,
    day INTEGER NOT NULL,
    holdout INTEGER NOT NULL,
    source TEXT NOT NULL,
    measure TEXT NOT NULL,
    names TEXT NOT NULL, -- JSON array
    producer TEXT NOT NULL, -- whose records were counted; - where they named none, or were counted before this column
    value INTEGER NOT NULL,
    PRIMARY KEY (scenario_no, day, holdout, source, measure, names, producer)
) STRICT, WITHOUT ROWID;
INSERT INTO aggregate_by_producer
SELECT scenario_no, day, holdout, source, measure, names, '-', value FROM aggregate;
DROP TABLE aggregate;
ALTER TABLE aggregate_by_producer RENAME TO aggregate;
CREATE INDEX aggregate_gone ON aggregate (scenario_no) WHERE value = 0;

-- How many episodes each learn model made.
CREATE TABLE episode_count (
    scenario_no INTEGER NOT NULL,
    learn_model TEXT NOT NULL,
    episodes INTEGER NOT NULL,
    PRIMARY KEY (scenario_no, learn_model)
) STRICT, WITHOUT ROWID;
INSERT INTO episode_count
SELECT scenario_no, learn_model, count(*) FROM episode GROUP BY scenario_no, learn_model;

-- Sessions whose learn stats are in the counts.
ALTER TABLE scenario ADD COLUMN counted_sessions INTEGER NOT NULL DEFAULT 0;
UPDATE scenario SET counted_sessions = (
    SELECT count(*) FROM session WHERE session.scenario_no = scenario.scenario_no AND counted = 1
);

-- Episodes by learn model at the last training. Nobody wrote them down then: those of today, so that the next training
-- waits for as many new ones as its trigger says.
ALTER TABLE trigger_state ADD COLUMN trained_by_model TEXT NOT NULL DEFAULT '{}';
UPDATE trigger_state SET trained_by_model = (
    SELECT json_group_object(learn_model, episode_count.episodes)
    FROM scenario JOIN episode_count USING (scenario_no) WHERE scenario.name = trigger_state.scenario
) WHERE trained_upto IS NOT NULL;

-- In the order of the log a session comes after its tasks, and a task that never rests waits behind the others.
DROP INDEX task_due_now;
CREATE INDEX task_due_now ON task (changed_upto, task_no) WHERE due = 1;
DROP INDEX session_pending;
CREATE INDEX session_pending ON session (position) WHERE position IS NOT NULL AND counted = 0;
