-- depends: 0013_timeframes
-- What the trading side reads and writes, beside the pipeline's own tables: orders and what became
-- of them, what is held, what strategies may do, and what was decided and why. Of all this the
-- pipeline itself only reads fills and positions, to compare them (`position_reconciliation`).

CREATE SCHEMA IF NOT EXISTS trading;
CREATE SCHEMA IF NOT EXISTS config;
CREATE SCHEMA IF NOT EXISTS audit;

-- An UPDATE that does not say when it was made was made now.
CREATE FUNCTION trading.touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END
$$;

CREATE TABLE trading.orders (
    id              uuid           NOT NULL DEFAULT gen_random_uuid(),
    symbol          varchar(20)    NOT NULL,
    side            text           NOT NULL,
    order_type      text           NOT NULL,
    quantity        numeric(18, 8) NOT NULL,
    price           numeric(18, 8),
    status          text           NOT NULL DEFAULT 'pending',
    broker          text           NOT NULL,
    broker_order_id varchar(50),
    strategy_id     varchar(50),
    created_at      timestamptz    NOT NULL DEFAULT now(),
    updated_at      timestamptz    NOT NULL DEFAULT now(),
    filled_at       timestamptz,
    filled_qty      numeric(18, 8) NOT NULL DEFAULT 0,
    avg_fill_price  numeric(18, 8),
    commission      numeric(18, 8) NOT NULL DEFAULT 0,
    CONSTRAINT orders_pkey PRIMARY KEY (id),
    CONSTRAINT orders_side CHECK (side IN ('buy', 'sell')),
    CONSTRAINT orders_order_type CHECK (order_type IN ('market', 'limit', 'stop_limit')),
    CONSTRAINT orders_status CHECK (
        status IN ('pending', 'sent', 'partial', 'filled', 'cancelled', 'rejected')
    ),
    CONSTRAINT orders_broker CHECK (broker IN ('ibkr', 'kraken')),
    -- NaN is greater than every number, to PostgreSQL.
    CONSTRAINT orders_quantity CHECK (quantity > 0 AND quantity < 'NaN'),
    CONSTRAINT orders_price CHECK ((price IS NULL) = (order_type = 'market') AND price < 'NaN'),
    CONSTRAINT orders_filled CHECK (filled_qty BETWEEN 0 AND quantity),
    CONSTRAINT orders_filled_at CHECK (
        status <> 'filled' OR (filled_at IS NOT NULL AND avg_fill_price IS NOT NULL)
    )
);
CREATE INDEX orders_symbol ON trading.orders (symbol, created_at);
CREATE INDEX orders_by_status ON trading.orders (status);
CREATE INDEX orders_strategy ON trading.orders (strategy_id, created_at);
CREATE TRIGGER orders_touch BEFORE UPDATE ON trading.orders FOR EACH ROW
    WHEN (NEW.updated_at IS NOT DISTINCT FROM OLD.updated_at) EXECUTE FUNCTION trading.touch();

-- Fills. A hypertable on TimescaleDB, whose keys have to include its time.
CREATE TABLE trading.trades (
    id           uuid           NOT NULL DEFAULT gen_random_uuid(),
    order_id     uuid           NOT NULL,
    symbol       varchar(20)    NOT NULL,
    side         text           NOT NULL,
    quantity     numeric(18, 8) NOT NULL,
    price        numeric(18, 8) NOT NULL,
    commission   numeric(18, 8) NOT NULL DEFAULT 0,
    realized_pnl numeric(18, 8),
    executed_at  timestamptz    NOT NULL,
    broker       text           NOT NULL,
    CONSTRAINT trades_pkey PRIMARY KEY (id, executed_at),
    CONSTRAINT trades_order FOREIGN KEY (order_id) REFERENCES trading.orders (id),
    CONSTRAINT trades_side CHECK (side IN ('buy', 'sell')),
    CONSTRAINT trades_broker CHECK (broker IN ('ibkr', 'kraken')),
    CONSTRAINT trades_quantity CHECK (quantity > 0 AND quantity < 'NaN'),
    CONSTRAINT trades_price CHECK (price < 'NaN'),
    CONSTRAINT trades_realized_pnl CHECK (realized_pnl < 'NaN')
);
CREATE INDEX trades_order ON trading.trades (order_id);
CREATE INDEX trades_symbol ON trading.trades (symbol, executed_at);
CREATE INDEX trades_time ON trading.trades USING brin (executed_at) WITH (autosummarize = on);

CREATE TABLE trading.positions (
    symbol          varchar(20)    NOT NULL,
    quantity        numeric(18, 8) NOT NULL,
    avg_entry_price numeric(18, 8) NOT NULL,
    current_price   numeric(18, 8),
    unrealized_pnl  numeric(18, 8),
    realized_pnl    numeric(18, 8) NOT NULL DEFAULT 0,
    opened_at       timestamptz    NOT NULL DEFAULT now(),
    updated_at      timestamptz    NOT NULL DEFAULT now(),
    CONSTRAINT positions_pkey PRIMARY KEY (symbol),
    CONSTRAINT positions_quantity CHECK (quantity < 'NaN')
);
COMMENT ON COLUMN trading.positions.quantity IS 'negative: short';
CREATE TRIGGER positions_touch BEFORE UPDATE ON trading.positions FOR EACH ROW
    WHEN (NEW.updated_at IS NOT DISTINCT FROM OLD.updated_at) EXECUTE FUNCTION trading.touch();

-- What a broker says it holds. A symbol that a snapshot leaves out is not held.
CREATE TABLE trading.broker_positions (
    taken_at timestamptz    NOT NULL,
    broker   text           NOT NULL,
    symbol   varchar(20)    NOT NULL,
    quantity numeric(18, 8) NOT NULL,
    CONSTRAINT broker_positions_pkey PRIMARY KEY (taken_at, broker, symbol),
    CONSTRAINT broker_positions_broker CHECK (broker IN ('ibkr', 'kraken')),
    CONSTRAINT broker_positions_quantity CHECK (quantity < 'NaN')
);

CREATE TABLE config.strategies (
    id              varchar(50) NOT NULL,
    name            text        NOT NULL,
    enabled         boolean     NOT NULL DEFAULT false,
    params          jsonb       NOT NULL DEFAULT '{}',
    allowed_symbols text[]      NOT NULL DEFAULT '{}',
    regime_filter   text[]      NOT NULL DEFAULT '{}',
    max_positions   integer     NOT NULL DEFAULT 1,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT strategies_pkey PRIMARY KEY (id),
    CONSTRAINT strategies_params CHECK (jsonb_typeof(params) = 'object'),
    CONSTRAINT strategies_regime_filter CHECK (
        regime_filter <@ ARRAY['trend', 'range', 'transition']
    ),
    CONSTRAINT strategies_max_positions CHECK (max_positions >= 0)
);
CREATE TRIGGER strategies_touch BEFORE UPDATE ON config.strategies FOR EACH ROW
    WHEN (NEW.updated_at IS NOT DISTINCT FROM OLD.updated_at) EXECUTE FUNCTION trading.touch();

CREATE TABLE config.risk_limits (
    key         varchar(50) NOT NULL,
    value       numeric     NOT NULL,
    description text,
    updated_at  timestamptz NOT NULL DEFAULT now(),
    updated_by  text        NOT NULL DEFAULT session_user,
    CONSTRAINT risk_limits_pkey PRIMARY KEY (key),
    CONSTRAINT risk_limits_value CHECK (value < 'NaN')
);
CREATE TRIGGER risk_limits_touch BEFORE UPDATE ON config.risk_limits FOR EACH ROW
    WHEN (NEW.updated_at IS NOT DISTINCT FROM OLD.updated_at) EXECUTE FUNCTION trading.touch();

-- Both logs: a partition per UTC month, and one for rows of a month that has none yet, so that
-- nothing that is to be remembered is refused. A decision may be noted before its order is: its
-- order_id is no foreign key.
CREATE TABLE audit.decisions (
    id            uuid        NOT NULL DEFAULT gen_random_uuid(),
    timestamp     timestamptz NOT NULL DEFAULT now(),
    decision_type text        NOT NULL,
    symbol        varchar(20),
    signals       jsonb,
    risk_check    jsonb,
    final_action  text        NOT NULL,
    reasoning     text,
    order_id      uuid,
    CONSTRAINT decisions_pkey PRIMARY KEY (id, timestamp)
) PARTITION BY RANGE (timestamp);
CREATE INDEX decisions_time ON audit.decisions (timestamp);
CREATE INDEX decisions_symbol ON audit.decisions (symbol, timestamp);
CREATE INDEX decisions_order ON audit.decisions (order_id);
CREATE TABLE audit.decisions_default PARTITION OF audit.decisions DEFAULT;

CREATE TABLE audit.system_events (
    id         bigserial   NOT NULL,
    timestamp  timestamptz NOT NULL DEFAULT now(),
    event_type text        NOT NULL,
    severity   text        NOT NULL DEFAULT 'info',
    component  text        NOT NULL,
    message    text        NOT NULL,
    metadata   jsonb,
    CONSTRAINT system_events_pkey PRIMARY KEY (id, timestamp),
    CONSTRAINT system_events_severity CHECK (severity IN ('info', 'warning', 'error', 'critical'))
) PARTITION BY RANGE (timestamp);
CREATE INDEX system_events_time ON audit.system_events (timestamp);
CREATE INDEX system_events_severity ON audit.system_events (severity, timestamp);
CREATE INDEX system_events_component ON audit.system_events (component, timestamp);
CREATE TABLE audit.system_events_default PARTITION OF audit.system_events DEFAULT;

-- The partitions of the months from this one to `ahead` later, where they are not there yet, and of
-- each month whose rows wait in the default partition. Runs as its owner: who keeps the tables up
-- needs no right to make others.
CREATE FUNCTION audit.make_partitions(ahead integer DEFAULT 12) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    parent text;
    month timestamptz;
    made text;
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
            CONTINUE WHEN to_regclass(format('audit.%I', made)) IS NOT NULL;
            EXECUTE format('CREATE TABLE audit.%I (LIKE audit.%I INCLUDING ALL)', made, parent);
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

-- Takes the partition of a month that ended more than a year ago out of its table, and returns how
-- many rows it holds, so that whoever exported it can tell whether that was all. The table stays, by
-- its own name.
CREATE FUNCTION audit.detach_partition(partition text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    part text[] := regexp_match(partition, '^(decisions|system_events)_(\d{4}_\d{2})$');
    held bigint;
BEGIN
    IF part IS NULL OR to_regclass(format('audit.%I', partition)) IS NULL THEN
        RAISE EXCEPTION '% is no partition of an audit table', partition;
    END IF;
    IF to_timestamp(part[2], 'YYYY_MM') > date_trunc('month', now()) - INTERVAL '13 months' THEN
        RAISE EXCEPTION '% is not older than a year', partition;
    END IF;
    EXECUTE format('ALTER TABLE audit.%I DETACH PARTITION audit.%I', part[1], partition);
    EXECUTE format('SELECT count(*) FROM audit.%I', partition) INTO held;
    RETURN held;
END
$$;
REVOKE EXECUTE ON FUNCTION audit.make_partitions(integer), audit.detach_partition(text) FROM PUBLIC;

DO $$ BEGIN PERFORM audit.make_partitions(); END $$;

-- Per UTC day and symbol; a trade that leaves its position open has no result yet and counts among
-- the trades alone. TimescaleDB has it as a continuous aggregate.
CREATE VIEW daily_trading_summary AS
    SELECT
        date_trunc('day', executed_at, 'UTC') AS time,
        symbol,
        count(*) AS trades,
        count(*) FILTER (WHERE realized_pnl > 0) AS winning,
        count(*) FILTER (WHERE realized_pnl < 0) AS losing,
        sum(realized_pnl) AS total_pnl,
        avg(realized_pnl) AS mean_pnl,
        min(realized_pnl) AS min_pnl,
        max(realized_pnl) AS max_pnl
    FROM trading.trades
    GROUP BY 1, 2;

-- What each day's comparison found, by the end of the day: the position, the sum of its fills, and
-- what the brokers hold. Written by the asset of that name.
CREATE TABLE position_reconciliation (
    symbol             text             NOT NULL,
    time               timestamptz      NOT NULL,
    available_at       timestamptz      NOT NULL,
    availability_basis text             NOT NULL,
    position           double precision NOT NULL,
    traded             double precision NOT NULL,
    held               double precision,
    traded_difference  double precision NOT NULL,
    held_difference    double precision,
    brokers            text[]           NOT NULL,
    unseen             text[]           NOT NULL,
    computed_at        timestamptz      NOT NULL,
    run_id             text             NOT NULL,
    CONSTRAINT position_reconciliation_pkey PRIMARY KEY (time, symbol),
    CONSTRAINT position_reconciliation_basis
        CHECK (availability_basis IN ('observed', 'assumed'))
);
