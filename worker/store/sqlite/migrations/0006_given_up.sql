-- How a deployment failed, as fields: whoever carries on after a crash must not read it out of a text for people.

ALTER TABLE deployment ADD COLUMN given_up_by TEXT NOT NULL DEFAULT '';
ALTER TABLE deployment ADD COLUMN stranded INTEGER NOT NULL DEFAULT 0;
UPDATE deployment SET stranded = 1 WHERE state = 'failed' AND instr(detail, '; and the way back failed: ') > 0;
