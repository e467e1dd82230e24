-- depends: 0014_trading_schema
-- How each table is cut into chunks, from when on it is compressed and how long it is kept: the one
-- place for it. `timescaledb.sql` brings the tables to what stands here, at each `migrate`; change it
-- by a migration (docs/how-to/timescaledb.md). Plain PostgreSQL keeps everything, in one piece.
--
-- A chunk that is being written, with its index, should fit a quarter of the memory: of 500 symbols
-- that trade 390 minutes a day 7 days of minute bars are 1.4 million rows, 300 MB; of those that
-- trade around the clock four times as much. A chunk goes as a whole, so it is short against its
-- retention. Whole days, so that a day lies in one chunk.

CREATE TABLE storage_policies (
    relation       text     NOT NULL,
    time_column    text     NOT NULL,
    chunk_interval interval NOT NULL,
    segment_by     text,
    order_by       text,
    compress_after interval,
    retention      interval,
    assets         text[]   NOT NULL DEFAULT '{}',
    CONSTRAINT storage_policies_pkey PRIMARY KEY (relation),
    CONSTRAINT storage_policies_chunk CHECK (
        chunk_interval >= INTERVAL '1 day'
        AND chunk_interval = extract(day FROM chunk_interval) * INTERVAL '1 day'
    ),
    CONSTRAINT storage_policies_compress CHECK (compress_after > INTERVAL '0'),
    CONSTRAINT storage_policies_order CHECK (compress_after IS NULL OR order_by IS NOT NULL),
    -- The newest days are summarised again and again, and must not be dropped meanwhile.
    CONSTRAINT storage_policies_retention CHECK (
        retention >= 3 * chunk_interval AND retention >= INTERVAL '30 days'
    )
);
COMMENT ON COLUMN storage_policies.relation IS 'a table that may not be there (yet)';
COMMENT ON COLUMN storage_policies.compress_after IS 'age of a chunk''s newest row; null: never';
COMMENT ON COLUMN storage_policies.retention IS
    'how long a row is kept at least, from when its chunk was made; null: for ever';
COMMENT ON COLUMN storage_policies.assets IS 'whose days in the ledger its rows are';

-- Bars, and what is derived from them.
INSERT INTO storage_policies
SELECT name || '_' || t.timeframe, 'time', t.chunk, 'symbol', 'time', t.compress, t.retention,
    ARRAY[name || '_' || t.timeframe]
FROM (
    VALUES
    ('1m', INTERVAL '7 days', INTERVAL '30 days', INTERVAL '6 months'),
    ('5m', INTERVAL '30 days', INTERVAL '3 months', INTERVAL '2 years'),
    ('1h', INTERVAL '180 days', INTERVAL '6 months', INTERVAL '5 years'),
    ('1d', INTERVAL '365 days', INTERVAL '1 year', NULL)
) AS t (timeframe, chunk, compress, retention)
CROSS JOIN unnest(ARRAY[
    'ohlcv', 'indicators', 'features', 'regime_predictions', 'state_vectors'
]) AS name;

UPDATE storage_policies
SET chunk_interval = least(chunk_interval, INTERVAL '90 days'),
    compress_after = least(compress_after, INTERVAL '90 days'),
    retention = least(retention, INTERVAL '2 years')
WHERE relation LIKE 'regime\_predictions\_%';

INSERT INTO storage_policies VALUES
('documents', 'available_at', '30 days', 'source', 'available_at', '60 days', '1 year',
    '{news,reddit}'),
('sentiment_scores', 'available_at', '30 days', 'symbol', 'available_at', '60 days', '1 year',
    '{sentiment_scores}'),
('macro_indicators', 'available_at', '365 days', 'series_id', 'available_at, time', '180 days',
    '5 years', '{macro_indicators}'),
('trading.trades', 'executed_at', '365 days', 'symbol', 'executed_at', '1 year', NULL, '{}');

-- What was replaced in a table is kept as long as the table keeps its rows. Never compressed: it is
-- little, and erasure reaches into it. What is not named here, history of what is kept for ever, the
-- ledger and quarantine, is small, and kept as plain tables.
INSERT INTO storage_policies VALUES
('ohlcv_1m_history', 'superseded_at', '30 days', NULL, NULL, NULL, '6 months', '{}'),
('ohlcv_5m_history', 'superseded_at', '90 days', NULL, NULL, NULL, '2 years', '{}'),
('ohlcv_1h_history', 'superseded_at', '180 days', NULL, NULL, NULL, '5 years', '{}'),
('documents_history', 'superseded_at', '30 days', NULL, NULL, NULL, '1 year', '{}'),
('macro_indicators_history', 'superseded_at', '365 days', NULL, NULL, NULL, '5 years', '{}');

-- The days whose rows retention has dropped, and how many there were: they are no holes to be
-- mended, and a summary of them is not made anew from less.
CREATE TABLE dropped_days (
    asset      text        NOT NULL,
    day        date        NOT NULL,
    rows       bigint      NOT NULL,
    dropped_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT dropped_days_pkey PRIMARY KEY (asset, day)
);

-- A document counts once, as it first appeared, in whatever summary: the writer says of a score
-- whether an earlier one of the same document is there.
ALTER TABLE sentiment_scores ADD COLUMN repeated boolean NOT NULL DEFAULT false;

UPDATE sentiment_scores AS s SET repeated = true
WHERE EXISTS (
    SELECT FROM sentiment_scores AS before
    WHERE before.document_id = s.document_id
        AND before.symbol = s.symbol
        AND before.model = s.model
        AND before.model_revision = s.model_revision
        AND before.available_at < s.available_at
);

CREATE OR REPLACE VIEW hourly_sentiment_summary AS
    SELECT
        date_trunc('hour', s.available_at, 'UTC') AS time,
        date_trunc('hour', s.available_at, 'UTC') + INTERVAL '1 hour' AS available_at,
        s.symbol,
        s.channel,
        s.source,
        s.model,
        s.model_revision,
        avg(s.sentiment) AS mean,
        stddev_samp(s.sentiment) AS volatility,
        count(*) AS document_count
    FROM sentiment_scores AS s
    WHERE NOT s.repeated
    GROUP BY 1, 2, s.symbol, s.channel, s.source, s.model, s.model_revision;
