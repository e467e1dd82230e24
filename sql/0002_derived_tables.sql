-- depends: 0001_source_tables
-- Tables that follow from inputs and code version: no history, `computed_at` for audit only.

CREATE TABLE sentiment_scores (
    document_id        text             NOT NULL,
    time               timestamptz      NOT NULL,
    available_at       timestamptz      NOT NULL,
    availability_basis text             NOT NULL,
    symbol             text             NOT NULL,
    channel            text             NOT NULL,
    source             text             NOT NULL,
    sentiment          double precision NOT NULL,
    label              text             NOT NULL,
    confidence         double precision NOT NULL,
    model              text             NOT NULL,
    model_revision     text             NOT NULL,
    computed_at        timestamptz      NOT NULL,
    run_id             text             NOT NULL,
    CONSTRAINT sentiment_scores_pkey
        PRIMARY KEY (document_id, symbol, model, model_revision, available_at),
    CONSTRAINT sentiment_scores_basis CHECK (availability_basis IN ('observed', 'assumed')),
    CONSTRAINT sentiment_scores_channel CHECK (channel IN ('news', 'reddit')),
    CONSTRAINT sentiment_scores_label CHECK (label IN ('positive', 'negative', 'neutral')),
    CONSTRAINT sentiment_scores_range CHECK (sentiment BETWEEN -1 AND 1),
    CONSTRAINT sentiment_scores_confidence CHECK (confidence BETWEEN 0 AND 1)
);
CREATE INDEX sentiment_scores_newest ON sentiment_scores (symbol, channel, available_at);
CREATE INDEX sentiment_scores_day ON sentiment_scores (available_at);

CREATE TABLE indicators_1d (
    symbol             text             NOT NULL,
    time               timestamptz      NOT NULL,
    available_at       timestamptz      NOT NULL,
    availability_basis text             NOT NULL,
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
    CONSTRAINT indicators_1d_pkey PRIMARY KEY (symbol, time),
    CONSTRAINT indicators_1d_basis CHECK (availability_basis IN ('observed', 'assumed'))
);
CREATE INDEX indicators_1d_time ON indicators_1d USING brin (time) WITH (autosummarize = on);

CREATE TABLE features_1d (
    symbol             text             NOT NULL,
    time               timestamptz      NOT NULL,
    available_at       timestamptz      NOT NULL,
    availability_basis text             NOT NULL,
    returns_1d         double precision,
    returns_5d         double precision,
    returns_20d        double precision,
    returns_60d        double precision,
    volatility_20d     double precision,
    volatility_60d     double precision,
    momentum_20d       double precision,
    momentum_60d       double precision,
    volume_ratio_20d   double precision,
    sma_ratio_50       double precision,
    bb_position        double precision,
    sector_momentum    double precision,
    market_beta_60d    double precision,
    news_sentiment_24h double precision,
    social_volume_7d   double precision,
    computed_at        timestamptz      NOT NULL,
    run_id             text             NOT NULL,
    CONSTRAINT features_1d_pkey PRIMARY KEY (symbol, time),
    CONSTRAINT features_1d_basis CHECK (availability_basis IN ('observed', 'assumed'))
);
CREATE INDEX features_1d_time ON features_1d USING brin (time) WITH (autosummarize = on);

CREATE TABLE regime_predictions_1d (
    symbol             text             NOT NULL,
    time               timestamptz      NOT NULL,
    available_at       timestamptz      NOT NULL,
    availability_basis text             NOT NULL,
    regime             text,
    confidence         double precision,
    inputs             jsonb,
    model_version      text             NOT NULL,
    computed_at        timestamptz      NOT NULL,
    run_id             text             NOT NULL,
    CONSTRAINT regime_predictions_1d_pkey PRIMARY KEY (symbol, time),
    CONSTRAINT regime_predictions_1d_basis CHECK (availability_basis IN ('observed', 'assumed')),
    CONSTRAINT regime_predictions_1d_regime CHECK (regime IN ('trend', 'range', 'transition'))
);
CREATE INDEX regime_predictions_1d_time ON regime_predictions_1d USING brin (time) WITH (autosummarize = on);

CREATE TABLE state_vectors_1d (
    symbol             text             NOT NULL,
    time               timestamptz      NOT NULL,
    available_at       timestamptz      NOT NULL,
    availability_basis text             NOT NULL,
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
    CONSTRAINT state_vectors_1d_pkey PRIMARY KEY (symbol, time),
    CONSTRAINT state_vectors_1d_basis CHECK (availability_basis IN ('observed', 'assumed'))
);
CREATE INDEX state_vectors_1d_time ON state_vectors_1d USING brin (time) WITH (autosummarize = on);
