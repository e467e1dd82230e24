-- depends: 0003_ledger
-- A person may accept a rejected row: when, and why. The row then is what its source said, and the
-- same content is not rejected for the same reason again.

ALTER TABLE quarantine
    ADD COLUMN released_at      timestamptz,
    ADD COLUMN released_because text,
    ADD CONSTRAINT quarantine_release CHECK ((released_at IS NULL) = (released_because IS NULL));

CREATE INDEX quarantine_released ON quarantine (asset, source) WHERE released_at IS NOT NULL;
