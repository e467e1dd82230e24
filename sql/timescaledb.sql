-- What needs TimescaleDB. Not a migration: applied at each `migrate` where the extension is, after
-- hypertables.sql, so it must be idempotent.

-- -- tables: what storage_policies says -----------------------------------------------------------

DO $$
DECLARE
    wanted record;
BEGIN
    -- New chunks get the new length; those that are there stay as they are.
    FOR wanted IN
        SELECT p.*, to_regclass(p.relation) AS hypertable FROM storage_policies AS p
        JOIN timescaledb_information.dimensions AS d
            ON format('%I.%I', d.hypertable_schema, d.hypertable_name)::regclass
                = to_regclass(p.relation)
        WHERE d.time_interval <> p.chunk_interval
    LOOP
        PERFORM set_chunk_time_interval(wanted.hypertable, wanted.chunk_interval);
    END LOOP;

    -- The same goes for the order of what is compressed.
    FOR wanted IN
        SELECT p.*, to_regclass(p.relation) AS hypertable FROM storage_policies AS p
        LEFT JOIN timescaledb_information.hypertable_columnstore_settings AS s
            ON s.hypertable = to_regclass(p.relation)
        WHERE to_regclass(p.relation) IS NOT NULL
            AND p.compress_after IS NOT NULL
            AND (
                translate(s.segmentby, '" ', '')
                    IS DISTINCT FROM replace(coalesce(p.segment_by, ''), ' ', '')
                OR translate(s.orderby, '" ', '') IS DISTINCT FROM replace(p.order_by, ' ', '')
            )
    LOOP
        EXECUTE format(
            'ALTER TABLE %s SET (timescaledb.enable_columnstore,'
            ' timescaledb.segmentby = %L, timescaledb.orderby = %L)',
            wanted.hypertable, coalesce(wanted.segment_by, ''), wanted.order_by
        );
    END LOOP;
END
$$;

-- Retention counts from a chunk's creation: by the age of its rows it would drop a fresh backfill of
-- old days. A chunk is made when its first row comes and its last one may come a whole chunk later,
-- hence that much more.
DO $$
DECLARE
    wanted record;
    -- As after a restore: what comes in the place of a policy, or beside them, is then off as well.
    off boolean := EXISTS (
        SELECT FROM timescaledb_information.jobs
        WHERE proc_name = 'policy_retention' AND NOT scheduled
    );
BEGIN
    FOR wanted IN
        WITH policies AS (
            SELECT
                to_regclass(p.relation) AS hypertable,
                p.compress_after,
                p.retention + greatest(p.chunk_interval, (
                    SELECT max(c.range_end - c.range_start) FROM timescaledb_information.chunks AS c
                    WHERE format('%I.%I', c.hypertable_schema, c.hypertable_name)::regclass
                        = to_regclass(p.relation)
                )) AS drop_created_before
            FROM storage_policies AS p
            WHERE to_regclass(p.relation) IS NOT NULL
        ), jobs AS (
            SELECT
                format('%I.%I', hypertable_schema, hypertable_name)::regclass AS hypertable,
                proc_name,
                scheduled,
                (config ->> 'compress_after')::interval AS compress_after,
                (config ->> 'drop_created_before')::interval AS drop_created_before
            FROM timescaledb_information.jobs
            WHERE proc_name IN ('policy_compression', 'policy_retention')
        )
        SELECT
            p.*,
            c.hypertable IS NOT NULL AS compresses,
            r.hypertable IS NOT NULL AS drops,
            r.scheduled,
            p.compress_after IS DISTINCT FROM c.compress_after AS other_compression,
            p.drop_created_before IS DISTINCT FROM r.drop_created_before AS other_retention
        FROM policies AS p
        LEFT JOIN jobs AS c ON c.hypertable = p.hypertable AND c.proc_name = 'policy_compression'
        LEFT JOIN jobs AS r ON r.hypertable = p.hypertable AND r.proc_name = 'policy_retention'
    LOOP
        IF wanted.other_compression AND wanted.compresses THEN
            CALL remove_columnstore_policy(wanted.hypertable);
        END IF;
        IF wanted.other_compression AND wanted.compress_after IS NOT NULL THEN
            CALL add_columnstore_policy(wanted.hypertable, after => wanted.compress_after);
        END IF;
        IF wanted.other_retention AND wanted.drops THEN
            PERFORM remove_retention_policy(wanted.hypertable);
        END IF;
        IF wanted.other_retention AND wanted.drop_created_before IS NOT NULL THEN
            PERFORM alter_job(
                add_retention_policy(
                    wanted.hypertable, drop_created_before => wanted.drop_created_before
                ),
                scheduled => coalesce(wanted.scheduled, NOT off)
            );
        END IF;
    END LOOP;
END
$$;

-- -- summaries: continuous aggregates in the place of the views of summaries.sql -------------------
--
-- Each is real time: what its last refresh has not seen yet is added from the table. Kept for ever,
-- beyond what the table keeps.

CREATE TABLE IF NOT EXISTS summary_progress (
    relation text   NOT NULL,
    revision bigint NOT NULL,
    CONSTRAINT summary_progress_pkey PRIMARY KEY (relation)
);
COMMENT ON TABLE summary_progress IS
    'up to which revision of the ledger the summaries of a table are made, of days before which';
-- Null in rows of before: every day is looked at once more.
ALTER TABLE summary_progress ADD COLUMN IF NOT EXISTS day date;

CREATE OR REPLACE FUNCTION pg_temp.aggregated(name text) RETURNS boolean LANGUAGE sql AS $$
    SELECT EXISTS (
        SELECT FROM timescaledb_information.continuous_aggregates AS a
        WHERE format('%I.%I', a.view_schema, a.view_name)::regclass = to_regclass(name)
    )
$$;

-- Puts a continuous aggregate in the place of a view, once; whether it did.
CREATE OR REPLACE FUNCTION pg_temp.aggregate(name text, base text, query text) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    IF to_regclass(base) IS NULL OR pg_temp.aggregated(name) THEN
        RETURN false;
    END IF;
    EXECUTE format('DROP VIEW IF EXISTS %I', name);
    EXECUTE format(
        'CREATE MATERIALIZED VIEW %I WITH (timescaledb.continuous,'
        ' timescaledb.materialized_only = false) AS %s WITH NO DATA', name, query
    );
    RETURN true;
END
$$;

-- What of a table's days may be summarised anew: those in chunks that are there, less those that were
-- dropped and hold less now than before. A refresh of others would erase what is known of them.
CREATE OR REPLACE FUNCTION summarisable(base text) RETURNS tstzmultirange LANGUAGE sql STABLE AS $$
    SELECT coalesce(range_agg(tstzrange(c.range_start, c.range_end)), '{}') - (
        SELECT coalesce(range_agg(tstzrange(
            d.day::timestamp AT TIME ZONE 'UTC', (d.day + 1)::timestamp AT TIME ZONE 'UTC'
        )), '{}')
        FROM dropped_days AS d
        WHERE d.asset = base AND d.rows > (
            SELECT coalesce(sum(l.rows), 0) FROM partition_ledger AS l
            WHERE l.asset = d.asset AND l.day = d.day
        )
    )
    FROM timescaledb_information.chunks AS c
    WHERE c.hypertable_schema = current_schema AND c.hypertable_name = base
$$;

-- A policy's window lies within what every table keeps, so that it never makes anew what is dropped;
-- older days are refreshed once they are written (`maintain_storage`). Trades are kept for ever.
DO $$
DECLARE
    level  record;
    stored text;
BEGIN
    IF EXISTS (
        SELECT FROM timescaledb_information.continuous_aggregates
        WHERE view_schema = current_schema AND view_name = 'ohlcv_5m_rollup'
            AND view_definition !~* 'greatest'
    ) THEN
        -- Their bars were available before they were complete. What is known of dropped minutes
        -- stays, available when its bucket is over.
        CREATE TEMP TABLE kept_5m ON COMMIT DROP AS SELECT * FROM ohlcv_5m_rollup AS b
            WHERE NOT summarisable('ohlcv_1m') @> b.time;
        CREATE TEMP TABLE kept_1h ON COMMIT DROP AS SELECT * FROM ohlcv_1h_rollup AS b
            WHERE NOT summarisable('ohlcv_1m') @> b.time;
        CREATE TEMP TABLE kept_1d ON COMMIT DROP AS SELECT * FROM ohlcv_1d_rollup AS b
            WHERE NOT summarisable('ohlcv_1m') @> b.time;
        DROP MATERIALIZED VIEW ohlcv_1d_rollup;
        DROP MATERIALIZED VIEW ohlcv_1h_rollup;
        DROP MATERIALIZED VIEW ohlcv_5m_rollup;
    ELSIF NOT pg_temp.aggregated('ohlcv_5m_rollup') THEN
        DROP VIEW IF EXISTS ohlcv_1d_rollup, ohlcv_1h_rollup, ohlcv_5m_rollup;
    END IF;
    -- 24 hours: a day that is added may have 23 or 25, depending on the session's time zone.
    FOR level IN
        SELECT * FROM (VALUES
            ('ohlcv_5m_rollup', 'ohlcv_1m',        '1 minute',  '5 minutes', 'kept_5m'),
            ('ohlcv_1h_rollup', 'ohlcv_5m_rollup', '5 minutes', '1 hour',    'kept_1h'),
            ('ohlcv_1d_rollup', 'ohlcv_1h_rollup', '1 hour',    '24 hours',  'kept_1d')
        ) AS t (name, base, step, bucket, kept)
    LOOP
        CONTINUE WHEN NOT pg_temp.aggregate(level.name, level.base, format($query$
            SELECT
                b.symbol,
                time_bucket(%1$L, b.time) AS time,
                greatest(max(b.available_at), last(
                    b.available_at
                        + (time_bucket(%1$L, b.time) + INTERVAL %1$L - INTERVAL %2$L - b.time),
                    b.time
                )) AS available_at,
                first(b.open, b.time) AS open,
                max(b.high) AS high,
                min(b.low) AS low,
                last(b.close, b.time) AS close,
                sum(b.volume) AS volume
            FROM %3$I AS b
            GROUP BY b.symbol, time_bucket(%1$L, b.time)
        $query$, level.bucket, level.step, level.base));
        DELETE FROM summary_progress WHERE relation = 'ohlcv_1m';
        PERFORM add_continuous_aggregate_policy(
            level.name::regclass,
            start_offset => INTERVAL '7 days',
            end_offset => level.bucket::interval,
            schedule_interval => greatest(level.bucket::interval, INTERVAL '5 minutes')
        );
        CONTINUE WHEN to_regclass('pg_temp.' || level.kept) IS NULL;
        SELECT format('%I.%I', materialization_hypertable_schema, materialization_hypertable_name)
        INTO STRICT stored FROM timescaledb_information.continuous_aggregates
        WHERE view_schema = current_schema AND view_name = level.name;
        EXECUTE format(
            'INSERT INTO %s (symbol, time, available_at, open, high, low, close, volume)'
            ' SELECT symbol, time, greatest(available_at, time + %L::interval),'
            ' open, high, low, close, volume FROM pg_temp.%I',
            stored, level.bucket, level.kept
        );
    END LOOP;

    IF pg_temp.aggregate('hourly_sentiment_summary', 'sentiment_scores', $query$
        SELECT
            time_bucket('1 hour', s.available_at) AS time,
            time_bucket('1 hour', s.available_at) + INTERVAL '1 hour' AS available_at,
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
        GROUP BY time_bucket('1 hour', s.available_at),
            s.symbol, s.channel, s.source, s.model, s.model_revision
    $query$) THEN
        DELETE FROM summary_progress WHERE relation = 'sentiment_scores';
        PERFORM add_continuous_aggregate_policy(
            'hourly_sentiment_summary',
            start_offset => INTERVAL '7 days',
            end_offset => INTERVAL '1 hour',
            schedule_interval => INTERVAL '15 minutes'
        );
    END IF;

    IF pg_temp.aggregate('daily_trading_summary', 'trading.trades', $query$
        SELECT
            time_bucket('1 day', t.executed_at) AS time,
            t.symbol,
            count(*) AS trades,
            count(*) FILTER (WHERE t.realized_pnl > 0) AS winning,
            count(*) FILTER (WHERE t.realized_pnl < 0) AS losing,
            sum(t.realized_pnl) AS total_pnl,
            avg(t.realized_pnl) AS mean_pnl,
            min(t.realized_pnl) AS min_pnl,
            max(t.realized_pnl) AS max_pnl
        FROM trading.trades AS t
        GROUP BY time_bucket('1 day', t.executed_at), t.symbol
    $query$) THEN
        PERFORM add_continuous_aggregate_policy(
            'daily_trading_summary',
            start_offset => NULL,
            end_offset => INTERVAL '1 day',
            schedule_interval => INTERVAL '1 hour'
        );
    END IF;
END
$$;

-- -- upkeep, by the owner of the tables, in the background ------------------------------------------

-- A day that no chunk holds and that had rows was dropped: it leaves the ledger, so that nothing is
-- computed as if it were there, and is written down as dropped, so that nobody mends it. A day that
-- somebody is just writing has a newer token than the one seen, and stays.
CREATE OR REPLACE PROCEDURE forget_dropped() LANGUAGE sql AS $$
    WITH held AS (
        SELECT p.assets, coalesce(
            range_agg(tstzrange(c.range_start, c.range_end)) FILTER (WHERE c.chunk_name IS NOT NULL),
            '{}'
        ) AS chunks
        FROM storage_policies AS p
        JOIN timescaledb_information.hypertables AS h
            ON format('%I.%I', h.hypertable_schema, h.hypertable_name)::regclass
                = to_regclass(p.relation)
        LEFT JOIN timescaledb_information.chunks AS c
            USING (hypertable_schema, hypertable_name)
        WHERE p.retention IS NOT NULL
        GROUP BY p.relation
    ), gone AS (
        SELECT l.asset, l.source, l.day, l.token
        FROM held AS h JOIN partition_ledger AS l ON l.asset = ANY (h.assets)
        WHERE l.rows > 0 AND NOT h.chunks @> (l.day::timestamp AT TIME ZONE 'UTC')
    ), forgotten AS (
        DELETE FROM partition_ledger AS l USING gone AS g
        WHERE (l.asset, l.source, l.day, l.token) = (g.asset, g.source, g.day, g.token)
        RETURNING l.asset, l.day, l.rows
    )
    INSERT INTO dropped_days AS d (asset, day, rows)
    SELECT asset, day, sum(rows) FROM forgotten GROUP BY asset, day
    ON CONFLICT (asset, day) DO UPDATE SET
        rows = greatest(d.rows, EXCLUDED.rows), dropped_at = EXCLUDED.dropped_at
$$;

-- Brings the ledger in line with retention, and the summaries with every day that was written since,
-- or whose rows count differently (`summaries_due`), however old; but for today, which real time
-- adds, and which is looked at when it is over. A job of TimescaleDB calls it; so may the owner: CALL
-- maintain_storage().
CREATE OR REPLACE PROCEDURE maintain_storage(job_id int DEFAULT NULL, config jsonb DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
    root   record;
    span   record;
    name   text;
    seen   record;
    newest bigint;
    due    bigint[];
    whole  boolean;
    today  date := (now() AT TIME ZONE 'UTC')::date;
    lock   CONSTANT bigint := hashtext('maintain_storage');
    holder int;
BEGIN
    -- The session's, since a refresh commits; a call that fails keeps it until its session ends, or
    -- calls again. Not to have it is an error, so that a job that does nothing is seen to fail.
    SELECT l.pid INTO holder FROM pg_locks AS l
    JOIN pg_database AS d ON d.oid = l.database AND d.datname = current_database()
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
        AND (l.classid::bigint << 32 | l.objid::bigint) = lock;
    IF holder = pg_backend_pid() THEN
        PERFORM pg_advisory_unlock(lock);
    END IF;
    IF NOT pg_try_advisory_lock(lock) THEN
        RAISE EXCEPTION 'maintain_storage was called in session % and is running, or failed there',
            holder USING HINT = 'wait for it, or close that session';
    END IF;
    CALL forget_dropped();
    COMMIT;
    FOR root IN
        SELECT * FROM (VALUES
            ('ohlcv_1m', ARRAY['ohlcv_5m_rollup', 'ohlcv_1h_rollup', 'ohlcv_1d_rollup']),
            ('sentiment_scores', ARRAY['hourly_sentiment_summary'])
        ) AS t (base, summaries)
        WHERE to_regclass(base) IS NOT NULL
    LOOP
        SELECT max(l.revision) INTO newest FROM partition_ledger AS l WHERE l.asset = root.base;
        SELECT p.revision, p.day INTO seen FROM summary_progress AS p WHERE p.relation = root.base;
        SELECT array_agg(d.id) INTO due FROM summaries_due AS d WHERE d.asset = root.base;
        CONTINUE WHEN newest IS NULL
            OR (newest <= seen.revision AND today <= seen.day AND due IS NULL);
        whole := true;
        -- Chunk by chunk, each looked at right before its refresh: retention may drop it meanwhile,
        -- and a refresh would find nothing there and erase what is known of it.
        FOR span IN
            SELECT
                min(w.day)::timestamp AT TIME ZONE 'UTC' AS first,
                (max(w.day) + 1)::timestamp AT TIME ZONE 'UTC' AS until
            FROM (
                SELECT l.day FROM partition_ledger AS l
                WHERE l.asset = root.base
                    AND (l.revision > coalesce(seen.revision, 0)
                        OR l.day >= coalesce(seen.day, '-infinity'))
                UNION
                SELECT d.day FROM summaries_due AS d WHERE d.id = ANY (due)
            ) AS w
            JOIN unnest(summarisable(root.base)) AS s (span)
                ON s.span @> (w.day::timestamp AT TIME ZONE 'UTC')
            JOIN timescaledb_information.chunks AS c
                ON c.hypertable_schema = current_schema AND c.hypertable_name = root.base
                AND tstzrange(c.range_start, c.range_end) @> (w.day::timestamp AT TIME ZONE 'UTC')
            WHERE w.day < today
            GROUP BY s.span, c.range_start ORDER BY s.span, c.range_start
        LOOP
            FOREACH name IN ARRAY root.summaries LOOP
                IF summarisable(root.base) @> tstzrange(span.first, span.until) THEN
                    CALL refresh_continuous_aggregate(name::regclass, span.first, span.until);
                ELSE
                    whole := false;
                END IF;
            END LOOP;
        END LOOP;
        -- What is left of a chunk that went is the next call's.
        CONTINUE WHEN NOT whole;
        INSERT INTO summary_progress AS p VALUES (root.base, newest, today)
        ON CONFLICT (relation) DO UPDATE SET revision = EXCLUDED.revision, day = EXCLUDED.day;
        DELETE FROM summaries_due AS d WHERE d.id = ANY (due);
        COMMIT;
    END LOOP;
    PERFORM pg_advisory_unlock(lock);
END
$$;

SELECT add_job('maintain_storage', INTERVAL '5 minutes')
WHERE NOT EXISTS (
    SELECT FROM timescaledb_information.jobs WHERE proc_name = 'maintain_storage'
);
