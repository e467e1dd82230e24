-- depends: 0016_registry_of_timeframes
-- Days of a table whose rows count differently in its summary than before, though their content and
-- so their revision is what it was: an earlier appearance of a document was written, and a score
-- that was its first is a repetition now. `maintain_storage` (timescaledb.sql) refreshes them, and
-- takes them away; no reader of the rows has to compute anything anew.
CREATE TABLE summaries_due (
    id    bigint GENERATED ALWAYS AS IDENTITY,
    asset text   NOT NULL,
    day   date   NOT NULL,
    CONSTRAINT summaries_due_pkey PRIMARY KEY (id)
);

-- `daily_trading_summary` is refreshed from its beginning on, since a result may become known years
-- later: where trades had been dropped, it would find none and erase their days.
UPDATE storage_policies SET retention = NULL WHERE relation = 'trading.trades';
ALTER TABLE storage_policies ADD CONSTRAINT storage_policies_trades CHECK (
    relation <> 'trading.trades' OR retention IS NULL
);
