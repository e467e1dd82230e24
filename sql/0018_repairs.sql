-- depends: 0017_summaries_stay_right
-- A month that was taken out of its log, and whose table is still there, becomes a partition again
-- when rows of it wait in the default partition: it is archived anew, whole.
CREATE OR REPLACE FUNCTION audit.make_partitions(ahead integer DEFAULT 12) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    parent text;
    month timestamptz;
    made text;
    relation regclass;
BEGIN
    IF ahead NOT BETWEEN 0 AND 120 THEN
        RAISE EXCEPTION 'ahead is %: partitions are made for 0 to 120 months', ahead;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('audit.make_partitions'));
    FOREACH parent IN ARRAY ARRAY['decisions', 'system_events'] LOOP
        FOR month IN EXECUTE format(
            'SELECT generate_series(date_trunc(''month'', now()),'
            ' date_trunc(''month'', now()) + make_interval(months => $1), ''1 month'')'
            ' UNION SELECT DISTINCT date_trunc(''month'', timestamp) FROM audit.%I'
            ' WHERE isfinite(timestamp) ORDER BY 1', parent || '_default')
            USING ahead
        LOOP
            made := parent || to_char(month, '_YYYY_MM');
            relation := to_regclass(format('audit.%I', made));
            CONTINUE WHEN EXISTS (SELECT FROM pg_inherits WHERE inhrelid = relation);
            IF relation IS NULL THEN
                EXECUTE format('CREATE TABLE audit.%I (LIKE audit.%I INCLUDING ALL)', made, parent);
            END IF;
            EXECUTE format(
                'WITH waiting AS (DELETE FROM audit.%I WHERE timestamp >= %L AND timestamp < %L'
                ' RETURNING *) INSERT INTO audit.%I SELECT * FROM waiting',
                parent || '_default', month, month + INTERVAL '1 month', made);
            EXECUTE format(
                'ALTER TABLE audit.%I ATTACH PARTITION audit.%I FOR VALUES FROM (%L) TO (%L)',
                parent, made, month, month + INTERVAL '1 month');
            RETURN NEXT 'audit.' || made;
        END LOOP;
    END LOOP;
END
$$;

-- NaN is greater than every number, to PostgreSQL; a sum with one in it is NaN. Checked at once, not
-- for new rows alone (NOT VALID): a row with NaN could not be changed any more, which would be noticed
-- while trading instead of now, and TimescaleDB checks compressed chunks in any case.
DO $$
DECLARE
    refused record;
    wrong bigint;
BEGIN
    FOR refused IN SELECT * FROM (
        VALUES
        ('orders', 'avg_fill_price'),
        ('orders', 'commission'),
        ('trades', 'commission'),
        ('positions', 'avg_entry_price'),
        ('positions', 'current_price'),
        ('positions', 'unrealized_pnl'),
        ('positions', 'realized_pnl')
    ) AS v (relation, name) LOOP
        EXECUTE format(
            'SELECT count(*) FROM trading.%I WHERE %I = ''NaN''', refused.relation, refused.name
        ) INTO wrong;
        IF wrong > 0 THEN
            RAISE EXCEPTION 'trading.%.% is NaN in % row(s); write a number there, or null where it '
                'may be, and migrate again', refused.relation, refused.name, wrong;
        END IF;
        EXECUTE format(
            'ALTER TABLE trading.%I ADD CONSTRAINT %I CHECK (%I < ''NaN'')',
            refused.relation, refused.relation || '_' || refused.name, refused.name
        );
    END LOOP;
END
$$;

-- One row per value, of all timeframes. A name is that of the row's own table: `returns_5d` of a
-- daily bar is `returns_5` of the others.
CREATE OR REPLACE VIEW feature_values AS
    SELECT
        wide.symbol AS ticker,
        regexp_replace(cell.key, '__v[0-9]+$', '') AS feature_name,
        (cell.value #>> '{}')::double precision AS value,
        wide.available_at AS as_of_timestamp,
        wide.computed_at AS calculated_at,
        coalesce(substring(cell.key FROM '__v([0-9]+)$')::integer, 1) AS version,
        wide.timeframe
    FROM (
        SELECT '1d'::text AS timeframe, t.symbol, t.available_at, t.computed_at, to_jsonb(t) AS cells
        FROM features_1d AS t
        UNION ALL SELECT '1d', t.symbol, t.available_at, t.computed_at, to_jsonb(t)
        FROM indicators_1d AS t
        UNION ALL SELECT '1h', t.symbol, t.available_at, t.computed_at, to_jsonb(t)
        FROM features_1h AS t
        UNION ALL SELECT '1h', t.symbol, t.available_at, t.computed_at, to_jsonb(t)
        FROM indicators_1h AS t
        UNION ALL SELECT '5m', t.symbol, t.available_at, t.computed_at, to_jsonb(t)
        FROM features_5m AS t
        UNION ALL SELECT '5m', t.symbol, t.available_at, t.computed_at, to_jsonb(t)
        FROM indicators_5m AS t
        UNION ALL SELECT '1m', t.symbol, t.available_at, t.computed_at, to_jsonb(t)
        FROM features_1m AS t
        UNION ALL SELECT '1m', t.symbol, t.available_at, t.computed_at, to_jsonb(t)
        FROM indicators_1m AS t
    ) AS wide
    CROSS JOIN LATERAL jsonb_each(wide.cells) AS cell (key, value)
    WHERE jsonb_typeof(cell.value) = 'number';
