-- depends: 0012_hourly_sentiment
-- Bars of a minute, five minutes and an hour, and what derives from them. As the daily tables, but
-- that a row says which session it belongs to, and that windows count bars where those count days.

CREATE TABLE ohlcv_1m (
    symbol             text             NOT NULL,
    time               timestamptz      NOT NULL,
    available_at       timestamptz      NOT NULL,
    availability_basis text             NOT NULL,
    session            date             NOT NULL,
    open               double precision NOT NULL,
    high               double precision NOT NULL,
    low                double precision NOT NULL,
    close              double precision NOT NULL,
    volume             double precision NOT NULL,
    spread             double precision,
    source             text             NOT NULL,
    recorded_at        timestamptz      NOT NULL,
    run_id             text             NOT NULL,
    CONSTRAINT ohlcv_1m_pkey PRIMARY KEY (symbol, time),
    CONSTRAINT ohlcv_1m_basis CHECK (availability_basis IN ('observed', 'assumed'))
);
CREATE INDEX ohlcv_1m_time ON ohlcv_1m USING brin (time) WITH (autosummarize = on);

CREATE TABLE indicators_1m (
    symbol             text             NOT NULL,
    time               timestamptz      NOT NULL,
    available_at       timestamptz      NOT NULL,
    availability_basis text             NOT NULL,
    session            date             NOT NULL,
    sma_20             double precision,
    sma_50             double precision,
    sma_200            double precision,
    ema_12             double precision,
    ema_26             double precision,
    rsi_14             double precision,
    macd_line          double precision,
    macd_signal        double precision,
    macd_hist          double precision,
    atr_14             double precision,
    bb_upper           double precision,
    bb_middle          double precision,
    bb_lower           double precision,
    adx_14             double precision,
    computed_at        timestamptz      NOT NULL,
    run_id             text             NOT NULL,
    CONSTRAINT indicators_1m_pkey PRIMARY KEY (symbol, time),
    CONSTRAINT indicators_1m_basis CHECK (availability_basis IN ('observed', 'assumed'))
);
CREATE INDEX indicators_1m_time ON indicators_1m USING brin (time) WITH (autosummarize = on);

CREATE TABLE features_1m (
    symbol                 text             NOT NULL,
    time                   timestamptz      NOT NULL,
    available_at           timestamptz      NOT NULL,
    availability_basis     text             NOT NULL,
    session                date             NOT NULL,
    returns_1              double precision,
    returns_5              double precision,
    returns_20             double precision,
    returns_60             double precision,
    volatility_20          double precision,
    volatility_60          double precision,
    momentum_20            double precision,
    momentum_60            double precision,
    volume_ratio_20        double precision,
    sma_ratio_50           double precision,
    bb_position            double precision,
    sector_momentum        double precision,
    market_beta_60         double precision,
    news_sentiment_24h     double precision,
    social_volume_7d       double precision,
    insider_net_buying_90d double precision,
    computed_at            timestamptz      NOT NULL,
    run_id                 text             NOT NULL,
    CONSTRAINT features_1m_pkey PRIMARY KEY (symbol, time),
    CONSTRAINT features_1m_basis CHECK (availability_basis IN ('observed', 'assumed'))
);
CREATE INDEX features_1m_time ON features_1m USING brin (time) WITH (autosummarize = on);

CREATE TABLE regime_predictions_1m (
    symbol             text             NOT NULL,
    time               timestamptz      NOT NULL,
    available_at       timestamptz      NOT NULL,
    availability_basis text             NOT NULL,
    session            date             NOT NULL,
    regime             text,
    confidence         double precision,
    inputs             jsonb,
    model_version      text             NOT NULL,
    computed_at        timestamptz      NOT NULL,
    run_id             text             NOT NULL,
    CONSTRAINT regime_predictions_1m_pkey PRIMARY KEY (symbol, time),
    CONSTRAINT regime_predictions_1m_basis CHECK (availability_basis IN ('observed', 'assumed')),
    CONSTRAINT regime_predictions_1m_regime CHECK (regime IN ('trend', 'range', 'transition'))
);
CREATE INDEX regime_predictions_1m_time ON regime_predictions_1m USING brin (time) WITH (autosummarize = on);

CREATE TABLE state_vectors_1m (
    symbol             text             NOT NULL,
    time               timestamptz      NOT NULL,
    available_at       timestamptz      NOT NULL,
    availability_basis text             NOT NULL,
    session            date             NOT NULL,
    close              double precision,
    log_return         double precision,
    atr                double precision,
    macd               double precision,
    rsi                double precision,
    bb_width           double precision,
    sentiment          double precision,
    regime_trend       double precision,
    regime_range       double precision,
    regime_transition  double precision,
    vix                double precision,
    fed_funds          double precision,
    yield_curve        double precision,
    volume_ratio       double precision,
    document_count     bigint,
    missing            text[]           NOT NULL,
    computed_at        timestamptz      NOT NULL,
    run_id             text             NOT NULL,
    CONSTRAINT state_vectors_1m_pkey PRIMARY KEY (symbol, time),
    CONSTRAINT state_vectors_1m_basis CHECK (availability_basis IN ('observed', 'assumed'))
);
CREATE INDEX state_vectors_1m_time ON state_vectors_1m USING brin (time) WITH (autosummarize = on);

CREATE TABLE ohlcv_1m_history (LIKE ohlcv_1m, superseded_at timestamptz NOT NULL);
CREATE INDEX ohlcv_1m_history_key ON ohlcv_1m_history (symbol, time, superseded_at);

CREATE TABLE ohlcv_5m (
    symbol             text             NOT NULL,
    time               timestamptz      NOT NULL,
    available_at       timestamptz      NOT NULL,
    availability_basis text             NOT NULL,
    session            date             NOT NULL,
    open               double precision NOT NULL,
    high               double precision NOT NULL,
    low                double precision NOT NULL,
    close              double precision NOT NULL,
    volume             double precision NOT NULL,
    spread             double precision,
    source             text             NOT NULL,
    recorded_at        timestamptz      NOT NULL,
    run_id             text             NOT NULL,
    CONSTRAINT ohlcv_5m_pkey PRIMARY KEY (symbol, time),
    CONSTRAINT ohlcv_5m_basis CHECK (availability_basis IN ('observed', 'assumed'))
);
CREATE INDEX ohlcv_5m_time ON ohlcv_5m USING brin (time) WITH (autosummarize = on);

CREATE TABLE indicators_5m (
    symbol             text             NOT NULL,
    time               timestamptz      NOT NULL,
    available_at       timestamptz      NOT NULL,
    availability_basis text             NOT NULL,
    session            date             NOT NULL,
    sma_20             double precision,
    sma_50             double precision,
    sma_200            double precision,
    ema_12             double precision,
    ema_26             double precision,
    rsi_14             double precision,
    macd_line          double precision,
    macd_signal        double precision,
    macd_hist          double precision,
    atr_14             double precision,
    bb_upper           double precision,
    bb_middle          double precision,
    bb_lower           double precision,
    adx_14             double precision,
    computed_at        timestamptz      NOT NULL,
    run_id             text             NOT NULL,
    CONSTRAINT indicators_5m_pkey PRIMARY KEY (symbol, time),
    CONSTRAINT indicators_5m_basis CHECK (availability_basis IN ('observed', 'assumed'))
);
CREATE INDEX indicators_5m_time ON indicators_5m USING brin (time) WITH (autosummarize = on);

CREATE TABLE features_5m (
    symbol                 text             NOT NULL,
    time                   timestamptz      NOT NULL,
    available_at           timestamptz      NOT NULL,
    availability_basis     text             NOT NULL,
    session                date             NOT NULL,
    returns_1              double precision,
    returns_5              double precision,
    returns_20             double precision,
    returns_60             double precision,
    volatility_20          double precision,
    volatility_60          double precision,
    momentum_20            double precision,
    momentum_60            double precision,
    volume_ratio_20        double precision,
    sma_ratio_50           double precision,
    bb_position            double precision,
    sector_momentum        double precision,
    market_beta_60         double precision,
    news_sentiment_24h     double precision,
    social_volume_7d       double precision,
    insider_net_buying_90d double precision,
    computed_at            timestamptz      NOT NULL,
    run_id                 text             NOT NULL,
    CONSTRAINT features_5m_pkey PRIMARY KEY (symbol, time),
    CONSTRAINT features_5m_basis CHECK (availability_basis IN ('observed', 'assumed'))
);
CREATE INDEX features_5m_time ON features_5m USING brin (time) WITH (autosummarize = on);

CREATE TABLE regime_predictions_5m (
    symbol             text             NOT NULL,
    time               timestamptz      NOT NULL,
    available_at       timestamptz      NOT NULL,
    availability_basis text             NOT NULL,
    session            date             NOT NULL,
    regime             text,
    confidence         double precision,
    inputs             jsonb,
    model_version      text             NOT NULL,
    computed_at        timestamptz      NOT NULL,
    run_id             text             NOT NULL,
    CONSTRAINT regime_predictions_5m_pkey PRIMARY KEY (symbol, time),
    CONSTRAINT regime_predictions_5m_basis CHECK (availability_basis IN ('observed', 'assumed')),
    CONSTRAINT regime_predictions_5m_regime CHECK (regime IN ('trend', 'range', 'transition'))
);
CREATE INDEX regime_predictions_5m_time ON regime_predictions_5m USING brin (time) WITH (autosummarize = on);

CREATE TABLE state_vectors_5m (
    symbol             text             NOT NULL,
    time               timestamptz      NOT NULL,
    available_at       timestamptz      NOT NULL,
    availability_basis text             NOT NULL,
    session            date             NOT NULL,
    close              double precision,
    log_return         double precision,
    atr                double precision,
    macd               double precision,
    rsi                double precision,
    bb_width           double precision,
    sentiment          double precision,
    regime_trend       double precision,
    regime_range       double precision,
    regime_transition  double precision,
    vix                double precision,
    fed_funds          double precision,
    yield_curve        double precision,
    volume_ratio       double precision,
    document_count     bigint,
    missing            text[]           NOT NULL,
    computed_at        timestamptz      NOT NULL,
    run_id             text             NOT NULL,
    CONSTRAINT state_vectors_5m_pkey PRIMARY KEY (symbol, time),
    CONSTRAINT state_vectors_5m_basis CHECK (availability_basis IN ('observed', 'assumed'))
);
CREATE INDEX state_vectors_5m_time ON state_vectors_5m USING brin (time) WITH (autosummarize = on);

CREATE TABLE ohlcv_5m_history (LIKE ohlcv_5m, superseded_at timestamptz NOT NULL);
CREATE INDEX ohlcv_5m_history_key ON ohlcv_5m_history (symbol, time, superseded_at);

CREATE TABLE ohlcv_1h (
    symbol             text             NOT NULL,
    time               timestamptz      NOT NULL,
    available_at       timestamptz      NOT NULL,
    availability_basis text             NOT NULL,
    session            date             NOT NULL,
    open               double precision NOT NULL,
    high               double precision NOT NULL,
    low                double precision NOT NULL,
    close              double precision NOT NULL,
    volume             double precision NOT NULL,
    spread             double precision,
    source             text             NOT NULL,
    recorded_at        timestamptz      NOT NULL,
    run_id             text             NOT NULL,
    CONSTRAINT ohlcv_1h_pkey PRIMARY KEY (symbol, time),
    CONSTRAINT ohlcv_1h_basis CHECK (availability_basis IN ('observed', 'assumed'))
);
CREATE INDEX ohlcv_1h_time ON ohlcv_1h USING brin (time) WITH (autosummarize = on);

CREATE TABLE indicators_1h (
    symbol             text             NOT NULL,
    time               timestamptz      NOT NULL,
    available_at       timestamptz      NOT NULL,
    availability_basis text             NOT NULL,
    session            date             NOT NULL,
    sma_20             double precision,
    sma_50             double precision,
    sma_200            double precision,
    ema_12             double precision,
    ema_26             double precision,
    rsi_14             double precision,
    macd_line          double precision,
    macd_signal        double precision,
    macd_hist          double precision,
    atr_14             double precision,
    bb_upper           double precision,
    bb_middle          double precision,
    bb_lower           double precision,
    adx_14             double precision,
    computed_at        timestamptz      NOT NULL,
    run_id             text             NOT NULL,
    CONSTRAINT indicators_1h_pkey PRIMARY KEY (symbol, time),
    CONSTRAINT indicators_1h_basis CHECK (availability_basis IN ('observed', 'assumed'))
);
CREATE INDEX indicators_1h_time ON indicators_1h USING brin (time) WITH (autosummarize = on);

CREATE TABLE features_1h (
    symbol                 text             NOT NULL,
    time                   timestamptz      NOT NULL,
    available_at           timestamptz      NOT NULL,
    availability_basis     text             NOT NULL,
    session                date             NOT NULL,
    returns_1              double precision,
    returns_5              double precision,
    returns_20             double precision,
    returns_60             double precision,
    volatility_20          double precision,
    volatility_60          double precision,
    momentum_20            double precision,
    momentum_60            double precision,
    volume_ratio_20        double precision,
    sma_ratio_50           double precision,
    bb_position            double precision,
    sector_momentum        double precision,
    market_beta_60         double precision,
    news_sentiment_24h     double precision,
    social_volume_7d       double precision,
    insider_net_buying_90d double precision,
    computed_at            timestamptz      NOT NULL,
    run_id                 text             NOT NULL,
    CONSTRAINT features_1h_pkey PRIMARY KEY (symbol, time),
    CONSTRAINT features_1h_basis CHECK (availability_basis IN ('observed', 'assumed'))
);
CREATE INDEX features_1h_time ON features_1h USING brin (time) WITH (autosummarize = on);

CREATE TABLE regime_predictions_1h (
    symbol             text             NOT NULL,
    time               timestamptz      NOT NULL,
    available_at       timestamptz      NOT NULL,
    availability_basis text             NOT NULL,
    session            date             NOT NULL,
    regime             text,
    confidence         double precision,
    inputs             jsonb,
    model_version      text             NOT NULL,
    computed_at        timestamptz      NOT NULL,
    run_id             text             NOT NULL,
    CONSTRAINT regime_predictions_1h_pkey PRIMARY KEY (symbol, time),
    CONSTRAINT regime_predictions_1h_basis CHECK (availability_basis IN ('observed', 'assumed')),
    CONSTRAINT regime_predictions_1h_regime CHECK (regime IN ('trend', 'range', 'transition'))
);
CREATE INDEX regime_predictions_1h_time ON regime_predictions_1h USING brin (time) WITH (autosummarize = on);

CREATE TABLE state_vectors_1h (
    symbol             text             NOT NULL,
    time               timestamptz      NOT NULL,
    available_at       timestamptz      NOT NULL,
    availability_basis text             NOT NULL,
    session            date             NOT NULL,
    close              double precision,
    log_return         double precision,
    atr                double precision,
    macd               double precision,
    rsi                double precision,
    bb_width           double precision,
    sentiment          double precision,
    regime_trend       double precision,
    regime_range       double precision,
    regime_transition  double precision,
    vix                double precision,
    fed_funds          double precision,
    yield_curve        double precision,
    volume_ratio       double precision,
    document_count     bigint,
    missing            text[]           NOT NULL,
    computed_at        timestamptz      NOT NULL,
    run_id             text             NOT NULL,
    CONSTRAINT state_vectors_1h_pkey PRIMARY KEY (symbol, time),
    CONSTRAINT state_vectors_1h_basis CHECK (availability_basis IN ('observed', 'assumed'))
);
CREATE INDEX state_vectors_1h_time ON state_vectors_1h USING brin (time) WITH (autosummarize = on);

CREATE TABLE ohlcv_1h_history (LIKE ohlcv_1h, superseded_at timestamptz NOT NULL);
CREATE INDEX ohlcv_1h_history_key ON ohlcv_1h_history (symbol, time, superseded_at);

-- A view keeps the columns that its tables had when it was made: who adds one to the tables of all
-- timeframes calls this again. It has the daily table's names; `returns_5d` there is `returns_5` in
-- the others, and windows count bars in both.
CREATE FUNCTION unite_timeframes(name text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    daily text := name || '_1d';
    unnumbered text := '^(.+_[0-9]+)d(__v[0-9]+)?$';
BEGIN
    EXECUTE (
        SELECT format('CREATE OR REPLACE VIEW %I AS ', name) || string_agg(
            (
                SELECT format('SELECT %L::text AS timeframe, ', w.timeframe) || string_agg(
                    format(
                        't.%I AS %I',
                        CASE
                            WHEN EXISTS (
                                SELECT FROM pg_attribute AS o
                                WHERE o.attrelid = w.relation AND o.attname = a.attname
                            ) THEN a.attname::text
                            ELSE regexp_replace(a.attname, unnumbered, '\1\2')
                        END,
                        a.attname
                    ),
                    ', ' ORDER BY a.attnum
                ) || format(' FROM %s AS t', w.relation)
                FROM pg_attribute AS a
                WHERE a.attrelid = daily::regclass AND a.attnum > 0 AND NOT a.attisdropped
            ),
            ' UNION ALL ' ORDER BY w.place
        )
        FROM (
            SELECT t.timeframe, t.place, (name || '_' || t.timeframe)::regclass AS relation
            FROM unnest(ARRAY['1d', '1h', '5m', '1m']) WITH ORDINALITY AS t (timeframe, place)
        ) AS w
    );
    EXECUTE format(
        'COMMENT ON VIEW %I IS %L',
        name,
        'All timeframes at once. Columns have the names of the daily table; windows count bars of '
        'the row''s timeframe, the days of the name are those of a daily row alone.'
    );
END
$$;

DO $$
BEGIN
    PERFORM unite_timeframes(name)
    FROM unnest(
        ARRAY['ohlcv', 'indicators', 'features', 'regime_predictions', 'state_vectors']
    ) AS v (name);
END
$$;
