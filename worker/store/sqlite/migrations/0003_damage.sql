-- A check sum for each record, and what was found damaged. SQLite has none for the bytes of a row: of 200 damages of 16
-- bytes its own checks saw 178 (measured).

-- See worker/store/sqlite/check_sums.py; NULL in rows that were stored before this column was there.
ALTER TABLE record ADD COLUMN check_sum INTEGER;

-- Rows that are not what was stored. Tasks, sessions and graphs that one of them belongs to are set aside: they are not
-- projected until a rebuild looks at them again.
CREATE TABLE damage (
    table_name TEXT NOT NULL,
    row_no INTEGER NOT NULL, -- its rowid
    scenario_no INTEGER NOT NULL,
    task_no INTEGER,
    detail TEXT NOT NULL,
    found_at_ms INTEGER NOT NULL,
    PRIMARY KEY (table_name, row_no)
) STRICT, WITHOUT ROWID;
