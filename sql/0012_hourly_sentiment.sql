-- depends: 0008_collected_for
-- Sentiment by the hour in which its documents became available. A row speaks of a whole hour and is
-- available when that is over, so `available_at <= t` sees only what was known at t. A document
-- counts once, as it first appeared: one that was collected again, edited, changes no hour that is
-- over and adds to none that follows.

CREATE VIEW hourly_sentiment_summary AS
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
    WHERE NOT EXISTS (
        SELECT FROM sentiment_scores AS before
        WHERE before.document_id = s.document_id
            AND before.symbol = s.symbol
            AND before.model = s.model
            AND before.model_revision = s.model_revision
            AND before.available_at < s.available_at
    )
    GROUP BY 1, 2, s.symbol, s.channel, s.source, s.model, s.model_revision;
