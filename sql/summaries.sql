-- Summaries for dashboards that are views here and continuous aggregates on TimescaleDB
-- (timescaledb.sql), under the same names. Applied at each `migrate`: one is made as soon as its
-- table is there. All buckets are those of UTC.
--
-- A rollup's bar has what its minutes traded; it is available when the last of them was.

DO $$
DECLARE
    level record;
BEGIN
    FOR level IN
        SELECT * FROM (VALUES
            ('ohlcv_5m_rollup', 'ohlcv_1m',        '5 minutes'),
            ('ohlcv_1h_rollup', 'ohlcv_5m_rollup', '1 hour'),
            ('ohlcv_1d_rollup', 'ohlcv_1h_rollup', '1 day')
        ) AS t (name, base, bucket)
    LOOP
        CONTINUE WHEN to_regclass(level.base) IS NULL OR to_regclass(level.name) IS NOT NULL;
        EXECUTE format($view$
            CREATE VIEW %I AS
                SELECT
                    b.symbol,
                    date_bin(%L, b.time, '2000-01-01 00:00:00+00') AS time,
                    max(b.available_at) AS available_at,
                    (array_agg(b.open ORDER BY b.time))[1] AS open,
                    max(b.high) AS high,
                    min(b.low) AS low,
                    (array_agg(b.close ORDER BY b.time DESC))[1] AS close,
                    sum(b.volume) AS volume
                FROM %I AS b
                GROUP BY b.symbol, 2
        $view$, level.name, level.bucket, level.base);
    END LOOP;

    -- Realised profit and loss of a UTC day: what is still open has none yet.
    IF to_regclass('trading.trades') IS NOT NULL AND to_regclass('daily_trading_summary') IS NULL
    THEN
        CREATE VIEW daily_trading_summary AS
            SELECT
                date_trunc('day', t.executed_at, 'UTC') AS time,
                t.symbol,
                count(*) AS trades,
                count(*) FILTER (WHERE t.realized_pnl > 0) AS winning,
                count(*) FILTER (WHERE t.realized_pnl < 0) AS losing,
                sum(t.realized_pnl) AS total_pnl,
                avg(t.realized_pnl) AS mean_pnl,
                min(t.realized_pnl) AS min_pnl,
                max(t.realized_pnl) AS max_pnl
            FROM trading.trades AS t
            GROUP BY 1, t.symbol;
    END IF;
END
$$;
