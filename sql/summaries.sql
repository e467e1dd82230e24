-- Summaries for dashboards that are views here and continuous aggregates on TimescaleDB
-- (timescaledb.sql), under the same names. Applied at each `migrate`: one is made as soon as its
-- table is there. All buckets are those of UTC.
--
-- A rollup's bar has what its minutes traded; it is available when the last of them was, and not
-- before its last possible one would have been: the minutes after its last trade had to pass, too.

DO $$
DECLARE
    level record;
BEGIN
    FOR level IN
        SELECT * FROM (VALUES
            ('ohlcv_5m_rollup', 'ohlcv_1m',        '1 minute',  '5 minutes'),
            ('ohlcv_1h_rollup', 'ohlcv_5m_rollup', '5 minutes', '1 hour'),
            ('ohlcv_1d_rollup', 'ohlcv_1h_rollup', '1 hour',    '24 hours')
        ) AS t (name, base, step, bucket)
    LOOP
        -- The first views had bars that were available too early: they lack `greatest`.
        CONTINUE WHEN to_regclass(level.base) IS NULL
            OR pg_get_viewdef(to_regclass(level.name)) ~* '_timescaledb_internal|greatest';
        EXECUTE format($view$
            CREATE OR REPLACE VIEW %4$I AS
                SELECT
                    b.symbol,
                    date_bin(%1$L, b.time, '2000-01-01 00:00:00+00') AS time,
                    greatest(max(b.available_at), (array_agg(
                        b.available_at + (
                            date_bin(%1$L, b.time, '2000-01-01 00:00:00+00')
                            + INTERVAL %1$L - INTERVAL %2$L - b.time
                        )
                        ORDER BY b.time DESC
                    ))[1]) AS available_at,
                    (array_agg(b.open ORDER BY b.time))[1] AS open,
                    max(b.high) AS high,
                    min(b.low) AS low,
                    (array_agg(b.close ORDER BY b.time DESC))[1] AS close,
                    sum(b.volume) AS volume
                FROM %3$I AS b
                GROUP BY b.symbol, 2
        $view$, level.bucket, level.step, level.base, level.name);
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
