-- depends: 0004_registry
-- What readers outside the pipeline ask: all timeframes at once, or one row per value.

CREATE VIEW ohlcv AS
    SELECT '1d'::text AS timeframe, t.* FROM ohlcv_1d AS t;
CREATE VIEW indicators AS
    SELECT '1d'::text AS timeframe, t.* FROM indicators_1d AS t;
CREATE VIEW features AS
    SELECT '1d'::text AS timeframe, t.* FROM features_1d AS t;
CREATE VIEW regime_predictions AS
    SELECT '1d'::text AS timeframe, t.* FROM regime_predictions_1d AS t;
CREATE VIEW state_vectors AS
    SELECT '1d'::text AS timeframe, t.* FROM state_vectors_1d AS t;

-- One row per value; `version` is the N of a column named <feature>__vN, else 1. Missing values
-- are not rows. A new column of a wide table shows up here by itself.
CREATE VIEW feature_values AS
    SELECT
        wide.symbol AS ticker,
        regexp_replace(cell.key, '__v[0-9]+$', '') AS feature_name,
        (cell.value #>> '{}')::double precision AS value,
        wide.available_at AS as_of_timestamp,
        wide.computed_at AS calculated_at,
        coalesce(substring(cell.key FROM '__v([0-9]+)$')::integer, 1) AS version
    FROM (
        SELECT f.symbol, f.available_at, f.computed_at, to_jsonb(f) AS cells FROM features_1d AS f
        UNION ALL
        SELECT i.symbol, i.available_at, i.computed_at, to_jsonb(i) AS cells FROM indicators_1d AS i
    ) AS wide
    CROSS JOIN LATERAL jsonb_each(wide.cells) AS cell (key, value)
    WHERE jsonb_typeof(cell.value) = 'number';
