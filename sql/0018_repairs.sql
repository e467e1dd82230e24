-- depends: 0016_registry_of_timeframes

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
