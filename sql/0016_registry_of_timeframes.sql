-- depends: 0015_storage_policies
-- The registry lists the features of every timeframe: a name may be one of several tables.

ALTER TABLE feature_definitions
    DROP CONSTRAINT feature_definitions_pkey,
    ADD CONSTRAINT feature_definitions_pkey PRIMARY KEY (name, version, source_table);
