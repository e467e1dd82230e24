-- Who may do what. Not a migration: applied at each `migrate` by a user who may create roles, or
-- where somebody made them, so that it reaches every table there is by then; idempotent.
--
-- Four roles without login, for the whole server; the operator grants them to those who log in:
--   feature_pipeline_owner       owns everything here: migrates, and may drop
--   feature_pipeline_maintainer  reads; keeps partitions, policies and aggregates going
--   feature_pipeline_writer      reads, inserts, updates, deletes; makes and drops nothing
--   feature_pipeline_reader      reads
-- They concern what the migrating user, or the owner, owns in `public`, trading, config and audit.
--
-- TimescaleDB runs jobs as the owner of what they are about, who therefore has to be allowed to log
-- in: there the first two may, and have no password to do it with.

DO $$
DECLARE
    wanted text;
    jobs boolean := EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb');
BEGIN
    FOREACH wanted IN ARRAY ARRAY['owner', 'maintainer', 'writer', 'reader'] LOOP
        wanted := 'feature_pipeline_' || wanted;
        CONTINUE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = wanted);
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            CONTINUE;  -- another database of this server is being migrated as well
        END;
        IF wanted ~ 'owner$' AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
            EXECUTE format('GRANT %I TO CURRENT_USER', wanted);
        END IF;
    END LOOP;
    -- Not by who may not, nor while another database's migration is at it.
    BEGIN
        IF NOT pg_has_role('feature_pipeline_owner', 'feature_pipeline_maintainer', 'USAGE') THEN
            GRANT feature_pipeline_maintainer TO feature_pipeline_owner;
        END IF;
        FOREACH wanted IN ARRAY ARRAY['feature_pipeline_owner', 'feature_pipeline_maintainer'] LOOP
            CONTINUE WHEN NOT jobs OR (SELECT rolcanlogin FROM pg_roles WHERE rolname = wanted);
            EXECUTE format('ALTER ROLE %I LOGIN', wanted);
        END LOOP;
    EXCEPTION WHEN insufficient_privilege OR unique_violation OR internal_error THEN
        NULL;
    END;
    EXECUTE format(
        'GRANT CONNECT, TEMPORARY ON DATABASE %I TO feature_pipeline_owner,'
        ' feature_pipeline_maintainer, feature_pipeline_writer, feature_pipeline_reader',
        current_database());
END
$$;

-- Servers that were upgraded from before 15 let everybody make tables in `public`.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public, trading, config, audit TO feature_pipeline_owner;
GRANT USAGE ON SCHEMA public, trading, config, audit
    TO feature_pipeline_maintainer, feature_pipeline_writer, feature_pipeline_reader;

-- TimescaleDB's policies are jobs of the tables' owner, who could drop these as well: the maintainer
-- has them run now, later or not at all through this.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')
        AND has_schema_privilege('config', 'CREATE')
        AND to_regprocedure('config.set_job(integer, boolean, timestamptz)') IS NULL
    THEN
        CREATE FUNCTION config.set_job(
            job integer, scheduled boolean DEFAULT NULL, next_start timestamptz DEFAULT NULL
        )
        RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $body$
        BEGIN
            PERFORM alter_job($1, scheduled => $2, next_start => $3);
        END
        $body$;
    END IF;
END
$$;

-- What is here goes to the owner, so that whoever is granted it can migrate. Continuous aggregates
-- go to the maintainer, since TimescaleDB refreshes them for their owner only.
DO $$
DECLARE
    ours oid := 'feature_pipeline_owner'::regrole;
    maintainer oid := 'feature_pipeline_maintainer'::regrole;
    aggregates oid[] := '{}';
    jobs boolean := EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb');
    schemas text[] := ARRAY['public', 'trading', 'config', 'audit'];
    one record;
BEGIN
    IF NOT pg_has_role(ours, 'USAGE')
        OR NOT has_schema_privilege(ours, 'public', 'CREATE')
        OR (jobs AND NOT (SELECT rolcanlogin FROM pg_roles WHERE oid = ours))
        -- Asked of new owners for chunks and aggregates, and granted by a superuser alone.
        OR (jobs AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
            AND NOT (has_schema_privilege(ours, '_timescaledb_internal', 'CREATE')
                AND has_schema_privilege(maintainer, '_timescaledb_internal', 'CREATE'))) THEN
        RETURN;  -- what is here stays with whoever made it
    END IF;
    IF jobs AND (SELECT rolcanlogin FROM pg_roles WHERE oid = maintainer)
        AND pg_has_role(maintainer, 'USAGE') THEN
        SELECT coalesce(array_agg(format('%I.%I', view_schema, view_name)::regclass::oid), '{}')
            INTO aggregates FROM timescaledb_information.continuous_aggregates;
        IF aggregates <> '{}' THEN  -- asked of a new owner, for as long as it becomes that
            GRANT CREATE ON SCHEMA public TO feature_pipeline_maintainer;
        END IF;
    END IF;
    FOR one IN
        SELECT format('SCHEMA %I', nspname) AS what, ours AS new_owner
        FROM pg_namespace
        WHERE nspname = ANY(schemas[2:]) AND nspowner = current_user::regrole
        UNION ALL
        SELECT format('ROUTINE %s', p.oid::regprocedure), ours
        FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE n.nspname = ANY(schemas || ARRAY['maintenance'])
            AND p.proowner = current_user::regrole
            AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = p.oid AND deptype = 'e')
        UNION ALL
        SELECT format('%s %s',
            CASE WHEN c.oid = ANY(aggregates) THEN 'MATERIALIZED VIEW'
                ELSE (jsonb '{"r": "TABLE", "p": "TABLE", "v": "VIEW", "S": "SEQUENCE"}')
                    ->> c.relkind::text END,
            c.oid::regclass),
            CASE WHEN c.oid = ANY(aggregates) THEN maintainer ELSE ours END
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = ANY(schemas) AND c.relkind IN ('r', 'p', 'v', 'S')
            AND c.relowner IN (current_user::regrole, ours)
            AND c.relowner <> CASE WHEN c.oid = ANY(aggregates) THEN maintainer ELSE ours END
            -- An extension's, or a sequence that belongs to a column and follows its table.
            AND NOT EXISTS (
                SELECT FROM pg_depend
                WHERE classid = 'pg_class'::regclass AND objid = c.oid
                    AND (deptype = 'e' OR (c.relkind = 'S' AND deptype IN ('a', 'i')))
            )
    LOOP
        EXECUTE format('ALTER %s OWNER TO %s', one.what, one.new_owner::regrole);
    END LOOP;
    IF aggregates <> '{}' THEN
        REVOKE CREATE ON SCHEMA public FROM feature_pipeline_maintainer;
    END IF;
END
$$;

-- What a job calls is the owner's by now, who could change it: it must not run as somebody mightier.
DO $$
DECLARE
    one record;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')
        OR NOT pg_has_role('feature_pipeline_owner', 'USAGE') THEN
        RETURN;
    END IF;
    FOR one IN
        SELECT j.job_id, j.schedule_interval, j.config, p.oid::regproc AS called
        FROM timescaledb_information.jobs j
        JOIN pg_namespace n ON n.nspname = j.proc_schema
        JOIN pg_proc p ON p.pronamespace = n.oid AND p.proname = j.proc_name
        WHERE j.owner = current_user::regrole AND p.proowner = 'feature_pipeline_owner'::regrole
    LOOP
        PERFORM delete_job(one.job_id);
        SET LOCAL ROLE feature_pipeline_owner;
        PERFORM add_job(one.called, one.schedule_interval, one.config);
        RESET ROLE;
    END LOOP;
END
$$;

-- Privileges on what is there. What migrations alone write can only be read; what is to be
-- remembered can be added to, and not changed.
DO $$
DECLARE
    one record;
    maintain boolean := current_setting('server_version_num')::integer >= 170000;
BEGIN
    FOR one IN
        SELECT c.oid, c.oid::regclass AS name, c.relkind,
            CASE
                WHEN n.nspname = 'audit' THEN 'INSERT'
                WHEN c.relkind = 'v' OR c.relname ~ '^_?yoyo' OR c.relname IN
                    ('feature_definitions', 'feature_sets', 'storage_policies') THEN ''
                ELSE 'INSERT, UPDATE, DELETE'
            END AS writes
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname IN ('public', 'trading', 'config', 'audit')
            AND c.relkind IN ('r', 'p', 'v', 'S')
            AND pg_has_role(c.relowner, 'USAGE')
            AND (c.relowner IN (
                current_user::regrole,
                'feature_pipeline_owner'::regrole,
                'feature_pipeline_maintainer'::regrole
            ))
            AND NOT EXISTS (
                SELECT FROM pg_depend
                WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e'
            )
    LOOP
        IF one.relkind = 'S' THEN
            CONTINUE WHEN has_sequence_privilege('feature_pipeline_writer', one.oid, 'USAGE');
            EXECUTE format(
                'GRANT USAGE, SELECT ON SEQUENCE %s TO feature_pipeline_writer', one.name);
            EXECUTE format('GRANT SELECT ON SEQUENCE %s TO feature_pipeline_reader,'
                ' feature_pipeline_maintainer', one.name);
            CONTINUE;
        END IF;
        CONTINUE WHEN has_table_privilege('feature_pipeline_reader', one.oid, 'SELECT')
            AND has_table_privilege('feature_pipeline_maintainer', one.oid, 'SELECT')
            AND has_table_privilege('feature_pipeline_writer', one.oid, 'SELECT')
            AND has_table_privilege('feature_pipeline_writer', one.oid, 'INSERT') = (one.writes <> '')
            -- Earlier versions do not know the word, and refuse it.
            AND CASE WHEN maintain AND one.relkind <> 'v'
                THEN has_table_privilege('feature_pipeline_maintainer', one.oid, 'MAINTAIN')
                ELSE true END;
        EXECUTE format('GRANT SELECT ON %s TO feature_pipeline_reader, feature_pipeline_maintainer,'
            ' feature_pipeline_writer', one.name);
        IF one.writes <> '' THEN
            EXECUTE format('GRANT %s ON %s TO feature_pipeline_writer', one.writes, one.name);
        ELSE  -- what was made since the last time has the privileges that later tables get
            EXECUTE format('REVOKE INSERT, UPDATE, DELETE ON %s FROM feature_pipeline_writer', one.name);
        END IF;
        IF maintain AND one.relkind <> 'v' THEN
            EXECUTE format('GRANT MAINTAIN ON %s TO feature_pipeline_maintainer', one.name);
        END IF;
    END LOOP;
END
$$;

-- And on what comes later, before anybody migrates again.
DO $$
DECLARE
    maker regrole;
    place text;
    rights text;
BEGIN
    FOREACH maker IN ARRAY ARRAY[current_user::regrole, 'feature_pipeline_owner'::regrole] LOOP
        CONTINUE WHEN NOT pg_has_role(maker, 'USAGE');
        FOREACH place IN ARRAY ARRAY['public', 'trading', 'config', 'audit'] LOOP
            rights := format('ALTER DEFAULT PRIVILEGES FOR ROLE %s IN SCHEMA %I ', maker, place);
            EXECUTE rights || 'GRANT SELECT ON TABLES TO feature_pipeline_reader,'
                ' feature_pipeline_maintainer, feature_pipeline_writer';
            EXECUTE rights || 'GRANT ' || CASE WHEN place = 'audit' THEN 'INSERT'
                ELSE 'INSERT, UPDATE, DELETE' END || ' ON TABLES TO feature_pipeline_writer';
            EXECUTE rights || 'GRANT USAGE, SELECT ON SEQUENCES TO feature_pipeline_writer';
            IF current_setting('server_version_num')::integer >= 170000 THEN
                EXECUTE rights || 'GRANT MAINTAIN ON TABLES TO feature_pipeline_maintainer';
            END IF;
        END LOOP;
    END LOOP;
END
$$;

-- What runs as its owner is not for everybody: said each time, since a restored database does not
-- know it.
DO $$
DECLARE
    one regprocedure;
BEGIN
    FOR one IN
        SELECT p.oid FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE n.nspname IN ('public', 'trading', 'config', 'audit') AND p.prosecdef
            AND pg_has_role(p.proowner, 'USAGE')
            AND p.proowner IN (current_user::regrole, 'feature_pipeline_owner'::regrole)
            AND NOT EXISTS (
                SELECT FROM pg_depend
                WHERE classid = 'pg_proc'::regclass AND objid = p.oid AND deptype = 'e'
            )
    LOOP
        EXECUTE format('REVOKE EXECUTE ON ROUTINE %s FROM PUBLIC', one);
    END LOOP;
    IF pg_has_role((SELECT nspowner FROM pg_namespace WHERE nspname = 'audit'), 'USAGE') THEN
        GRANT EXECUTE ON FUNCTION audit.make_partitions(integer), audit.detach_partition(text)
            TO feature_pipeline_owner, feature_pipeline_maintainer;
        GRANT EXECUTE ON FUNCTION audit.make_partitions(integer) TO feature_pipeline_writer;
    END IF;
    IF to_regprocedure('config.set_job(integer, boolean, timestamptz)') IS NOT NULL THEN
        GRANT EXECUTE ON FUNCTION config.set_job(integer, boolean, timestamptz)
            TO feature_pipeline_owner, feature_pipeline_maintainer;
    END IF;
END
$$;
