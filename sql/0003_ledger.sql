-- depends: 0002_derived_tables
-- What the writer knows: one row per (asset, source, day), and a side table for the exceptions.

CREATE TABLE partition_ledger (
    asset             text        NOT NULL,
    source            text        NOT NULL,
    day               date        NOT NULL,
    status            text        NOT NULL,
    rows              bigint      NOT NULL,
    content_hash      bigint      NOT NULL,
    revision          bigint      NOT NULL,
    upstream_revision bigint      NOT NULL,
    code_version      text        NOT NULL,
    token             bigint      NOT NULL,
    run_id            text        NOT NULL,
    updated_at        timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT partition_ledger_pkey PRIMARY KEY (asset, source, day),
    CONSTRAINT partition_ledger_status CHECK (status IN ('written')),
    CONSTRAINT partition_ledger_rows CHECK (rows >= 0)
);
-- Staleness asks for the newest revision of an asset over a range of days: index-only.
CREATE INDEX partition_ledger_day ON partition_ledger (asset, day) INCLUDE (revision);

CREATE TABLE partition_exceptions (
    asset  text NOT NULL,
    source text NOT NULL,
    day    date NOT NULL,
    symbol text NOT NULL,
    status text NOT NULL,
    reason text NOT NULL,
    run_id text NOT NULL,
    CONSTRAINT partition_exceptions_pkey PRIMARY KEY (asset, source, day, symbol),
    CONSTRAINT partition_exceptions_status CHECK (status IN ('no_answer', 'failed', 'quarantined'))
);
CREATE INDEX partition_exceptions_day ON partition_exceptions (asset, day);

-- Announced before inputs are read, so that a reader can tell "in progress" from "missing".
CREATE TABLE write_intents (
    token      bigint      NOT NULL,
    asset      text        NOT NULL,
    first_day  date        NOT NULL,
    last_day   date        NOT NULL,
    run_id     text        NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT write_intents_pkey PRIMARY KEY (token),
    CONSTRAINT write_intents_days CHECK (first_day <= last_day)
);
CREATE INDEX write_intents_asset ON write_intents (asset, first_day, last_day);

-- CACHE 1: numbers are handed out in the order they are asked for, across connections.
CREATE SEQUENCE fencing_token AS bigint CACHE 1;
CREATE SEQUENCE content_revision AS bigint CACHE 1;

-- Rejected input, kept with its reason; the same row rejected again is the same row.
CREATE TABLE quarantine (
    id           bigint      GENERATED ALWAYS AS IDENTITY,
    asset        text        NOT NULL,
    source       text        NOT NULL,
    day          date,
    symbol       text,
    reason       text        NOT NULL,
    payload      jsonb       NOT NULL,
    payload_hash bytea       NOT NULL,
    run_id       text        NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT quarantine_pkey PRIMARY KEY (id),
    CONSTRAINT quarantine_content UNIQUE (asset, source, reason, payload_hash)
);
CREATE INDEX quarantine_day ON quarantine (asset, day);
