-- Tables of what the outside world said, and the history of what it said before.
-- `time` is what a row is about, `available_at` when we could have used it; both UTC.
-- A restated row moves to <table>_history with `superseded_at`: `as_known_at` reads both.
-- No table has a plain index on time: BRIN here, chunk pruning where TimescaleDB is.

CREATE TABLE ohlcv_1d (
    symbol             text             NOT NULL,
    time               timestamptz      NOT NULL,
    available_at       timestamptz      NOT NULL,
    availability_basis text             NOT NULL,
    open               double precision NOT NULL,
    high               double precision NOT NULL,
    low                double precision NOT NULL,
    close              double precision NOT NULL,
    volume             double precision NOT NULL,
    spread             double precision,
    source             text             NOT NULL,
    recorded_at        timestamptz      NOT NULL,
    run_id             text             NOT NULL,
    CONSTRAINT ohlcv_1d_pkey PRIMARY KEY (symbol, time),
    CONSTRAINT ohlcv_1d_basis CHECK (availability_basis IN ('observed', 'assumed'))
);
CREATE INDEX ohlcv_1d_time ON ohlcv_1d USING brin (time) WITH (autosummarize = on);

CREATE TABLE corporate_actions (
    symbol             text             NOT NULL,
    time               timestamptz      NOT NULL,
    available_at       timestamptz      NOT NULL,
    availability_basis text             NOT NULL,
    kind               text             NOT NULL,
    value              double precision NOT NULL,
    source             text             NOT NULL,
    recorded_at        timestamptz      NOT NULL,
    run_id             text             NOT NULL,
    CONSTRAINT corporate_actions_pkey PRIMARY KEY (symbol, time, kind),
    CONSTRAINT corporate_actions_basis CHECK (availability_basis IN ('observed', 'assumed')),
    CONSTRAINT corporate_actions_kind CHECK (kind IN ('split', 'dividend'))
);
CREATE INDEX corporate_actions_available_at ON corporate_actions (available_at);

CREATE TABLE documents (
    document_id        text        NOT NULL,
    time               timestamptz NOT NULL,
    available_at       timestamptz NOT NULL,
    availability_basis text        NOT NULL,
    channel            text        NOT NULL,
    source             text        NOT NULL,
    symbols            text[]      NOT NULL,
    title              text        NOT NULL,
    text               text,
    url                text,
    recorded_at        timestamptz NOT NULL,
    run_id             text        NOT NULL,
    CONSTRAINT documents_pkey PRIMARY KEY (document_id, available_at),
    CONSTRAINT documents_basis CHECK (availability_basis IN ('observed', 'assumed')),
    CONSTRAINT documents_channel CHECK (channel IN ('news', 'reddit'))
);
CREATE INDEX documents_available_at ON documents (available_at);

CREATE TABLE macro_indicators (
    series_id          text             NOT NULL,
    time               timestamptz      NOT NULL,
    available_at       timestamptz      NOT NULL,
    availability_basis text             NOT NULL,
    value              double precision NOT NULL,
    name               text             NOT NULL,
    units              text             NOT NULL,
    frequency          text             NOT NULL,
    source             text             NOT NULL,
    recorded_at        timestamptz      NOT NULL,
    run_id             text             NOT NULL,
    CONSTRAINT macro_indicators_pkey PRIMARY KEY (series_id, time, available_at),
    CONSTRAINT macro_indicators_basis CHECK (availability_basis IN ('observed', 'assumed'))
);
CREATE INDEX macro_indicators_available_at ON macro_indicators (series_id, available_at);
CREATE INDEX macro_indicators_day ON macro_indicators (available_at);

-- What was replaced. Rows come here whole; the same key may come many times.

CREATE TABLE ohlcv_1d_history (LIKE ohlcv_1d, superseded_at timestamptz NOT NULL);
CREATE INDEX ohlcv_1d_history_key ON ohlcv_1d_history (symbol, time, superseded_at);

CREATE TABLE corporate_actions_history (LIKE corporate_actions, superseded_at timestamptz NOT NULL);
CREATE INDEX corporate_actions_history_key
    ON corporate_actions_history (symbol, time, kind, superseded_at);

CREATE TABLE documents_history (LIKE documents, superseded_at timestamptz NOT NULL);
CREATE INDEX documents_history_key
    ON documents_history (document_id, available_at, superseded_at);

CREATE TABLE macro_indicators_history (LIKE macro_indicators, superseded_at timestamptz NOT NULL);
CREATE INDEX macro_indicators_history_key
    ON macro_indicators_history (series_id, time, available_at, superseded_at);
