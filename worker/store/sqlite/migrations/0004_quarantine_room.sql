-- How much room the quarantine takes, so that it can be bounded without looking at every row, and how often a replay
-- found an entry as bad as before.

ALTER TABLE quarantine ADD COLUMN replays INTEGER NOT NULL DEFAULT 0;

-- One row. `bytes` counts what an entry keeps and 256 for the rest of its row and its place in the index; `moved` are
-- the entries that were moved out into files since the store was made.
CREATE TABLE quarantine_room (
    room_no INTEGER PRIMARY KEY CHECK (room_no = 1),
    entries INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    moved INTEGER NOT NULL
) STRICT;
INSERT INTO quarantine_room
SELECT
    1, count(*),
    coalesce(sum(length(body) + length(CAST(headers AS BLOB)) + length(CAST(detail AS BLOB)) + 256), 0), 0
FROM quarantine;

-- The same body with the same reason again changes its row and takes no further room.
CREATE TRIGGER quarantine_came AFTER INSERT ON quarantine BEGIN
    UPDATE quarantine_room SET
        entries = entries + 1,
        bytes = bytes + length(new.body) + length(CAST(new.headers AS BLOB)) + length(CAST(new.detail AS BLOB)) + 256;
END;
CREATE TRIGGER quarantine_went AFTER DELETE ON quarantine BEGIN
    UPDATE quarantine_room SET
        entries = entries - 1,
        bytes = bytes - length(old.body) - length(CAST(old.headers AS BLOB)) - length(CAST(old.detail AS BLOB)) - 256;
END;
