-- depends: 0008_collected_for
-- Form 4: what insiders of the companies bought and sold, by line of a filing, and what became of it
-- in features. A few thousand rows per company and decade: a plain table everywhere.

CREATE TABLE insider_transactions (
    accession          text             NOT NULL,
    line               bigint           NOT NULL,
    symbol             text             NOT NULL,
    time               timestamptz      NOT NULL,
    available_at       timestamptz      NOT NULL,
    availability_basis text             NOT NULL,
    form               text             NOT NULL,
    owner              bigint           NOT NULL,
    roles              text[]           NOT NULL,
    security           text             NOT NULL,
    derivative         boolean          NOT NULL,
    code               text             NOT NULL,
    acquired_disposed  text             NOT NULL,
    shares             double precision,
    price              double precision,
    value              double precision,
    shares_after       double precision,
    source             text             NOT NULL,
    recorded_at        timestamptz      NOT NULL,
    run_id             text             NOT NULL,
    CONSTRAINT insider_transactions_pkey PRIMARY KEY (symbol, accession, line),
    CONSTRAINT insider_transactions_basis CHECK (availability_basis IN ('observed', 'assumed')),
    CONSTRAINT insider_transactions_acquired_disposed CHECK (acquired_disposed IN ('A', 'D'))
);
CREATE INDEX insider_transactions_available_at ON insider_transactions (available_at);

CREATE TABLE insider_transactions_history (
    LIKE insider_transactions, superseded_at timestamptz NOT NULL
);
CREATE INDEX insider_transactions_history_key
    ON insider_transactions_history (symbol, accession, line, superseded_at);

ALTER TABLE features_1d ADD COLUMN insider_net_buying_90d double precision;

-- A view keeps the columns that its table had.
CREATE OR REPLACE VIEW features AS
    SELECT '1d'::text AS timeframe, t.* FROM features_1d AS t;
