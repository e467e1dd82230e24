-- What needs TimescaleDB. Not a migration: applied at each `migrate` where the extension is, so it
-- must be idempotent, and it takes tables that already hold rows.
--
-- No default time index: it halves ingest, and chunk pruning serves time ranges. For the same
-- reason the BRIN index of plain PostgreSQL goes.

CREATE EXTENSION IF NOT EXISTS timescaledb;

DO $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT * FROM (VALUES
            ('ohlcv_1d',              'time',         'ohlcv_1d_time'),
            ('indicators_1d',         'time',         'indicators_1d_time'),
            ('features_1d',           'time',         'features_1d_time'),
            ('regime_predictions_1d', 'time',         'regime_predictions_1d_time'),
            ('state_vectors_1d',      'time',         'state_vectors_1d_time'),
            ('documents',             'available_at', NULL),
            ('sentiment_scores',      'available_at', NULL),
            ('macro_indicators',      'available_at', NULL)
        ) AS t (relation, time_column, brin_index)
    LOOP
        CONTINUE WHEN EXISTS (
            SELECT FROM timescaledb_information.hypertables
            WHERE hypertable_schema = current_schema AND hypertable_name = wanted.relation
        );
        IF wanted.brin_index IS NOT NULL THEN
            EXECUTE format('DROP INDEX IF EXISTS %I', wanted.brin_index);
        END IF;
        PERFORM create_hypertable(
            wanted.relation::regclass,
            by_range(wanted.time_column::name, INTERVAL '365 days'),
            create_default_indexes => false,
            migrate_data => true
        );
    END LOOP;
END
$$;
