-- What has a policy becomes a hypertable (TimescaleDB alone); not a migration: at each `migrate`, it
-- takes tables that already hold rows. One statement, outside of a transaction: each table is moved
-- in its own, so that one that cannot be moved, or is interrupted, costs none of the others.
--
-- No default time index: it halves ingest, and chunk pruning serves time ranges. For the same
-- reason the BRIN index of plain PostgreSQL goes.
DO $$
DECLARE
    wanted record;
    brin   regclass;
BEGIN
    FOR wanted IN
        SELECT p.*, to_regclass(p.relation) AS hypertable FROM storage_policies AS p
        WHERE to_regclass(p.relation) IS NOT NULL
            AND to_regclass(p.relation) NOT IN (
                SELECT format('%I.%I', h.hypertable_schema, h.hypertable_name)::regclass
                FROM timescaledb_information.hypertables AS h
            )
        ORDER BY p.relation
    LOOP
        FOR brin IN
            SELECT i.indexrelid FROM pg_index AS i
            JOIN pg_class AS c ON c.oid = i.indexrelid
            JOIN pg_am AS a ON a.oid = c.relam
            WHERE i.indrelid = wanted.hypertable AND a.amname = 'brin'
        LOOP
            EXECUTE format('DROP INDEX %s', brin);
        END LOOP;
        PERFORM create_hypertable(
            wanted.hypertable,
            by_range(wanted.time_column::name, wanted.chunk_interval),
            create_default_indexes => false,
            migrate_data => true
        );
        COMMIT;
    END LOOP;
END
$$;
