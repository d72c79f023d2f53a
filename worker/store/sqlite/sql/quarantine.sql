-- insert_quarantine --
-- The same body with the same reason again is the same entry, and waits for its replay again.
INSERT INTO quarantine
    (scenario_no, reason, detail, received_at_ms, size, sha256, body, truncated, headers)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (scenario_no, reason, sha256) DO UPDATE SET seen = seen + 1, replayed_at_ms = NULL
RETURNING seen;

-- list_quarantine --
SELECT entry_id, name, reason, detail, received_at_ms, size, sha256, body, truncated, headers, seen, replayed_at_ms,
    replays
FROM quarantine JOIN scenario USING (scenario_no)
WHERE entry_id > :after
    AND (:scenario IS NULL OR name = :scenario)
    AND (:reason IS NULL OR reason = :reason)
    AND (NOT :pending_only OR replayed_at_ms IS NULL)
ORDER BY entry_id LIMIT :limit;

-- waiting_quarantine --
-- Entries that stay refused go to the end of the queue, so that the next few are others.
SELECT entry_id FROM quarantine JOIN scenario USING (scenario_no)
WHERE replayed_at_ms IS NULL
    AND (:scenario IS NULL OR name = :scenario)
    AND (:reason IS NULL OR reason = :reason)
ORDER BY replays, entry_id LIMIT :limit;

-- get_quarantine --
SELECT entry_id, name, reason, detail, received_at_ms, size, sha256, body, truncated, headers, seen, replayed_at_ms,
    replays
FROM quarantine JOIN scenario USING (scenario_no)
WHERE entry_id = ?;

-- mark_replayed --
UPDATE quarantine SET replayed_at_ms = ? WHERE entry_id = ?;

-- mark_refused --
UPDATE quarantine SET replays = replays + 1 WHERE entry_id = ?;

-- remove_quarantine --
DELETE FROM quarantine WHERE entry_id = ?;

-- note_moved --
UPDATE quarantine_room SET moved = moved + ?;

-- quarantine_room --
SELECT entries, bytes, moved FROM quarantine_room;
