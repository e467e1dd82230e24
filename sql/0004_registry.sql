-- depends: 0003_ledger
-- The feature registry, filled from the catalogue after every migration.

CREATE TABLE feature_definitions (
    name          text        NOT NULL,
    version       integer     NOT NULL,
    description   text        NOT NULL,
    data_type     text        NOT NULL,
    category      text        NOT NULL,
    source_table  text        NOT NULL,
    computation   text        NOT NULL,
    dependencies  text[]      NOT NULL DEFAULT '{}',
    lookback_bars integer     NOT NULL,
    tags          text[]      NOT NULL DEFAULT '{}',
    is_active     boolean     NOT NULL DEFAULT true,
    created_at    timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT feature_definitions_pkey PRIMARY KEY (name, version),
    CONSTRAINT feature_definitions_version CHECK (version >= 1),
    CONSTRAINT feature_definitions_lookback CHECK (lookback_bars >= 0)
);

CREATE TABLE feature_sets (
    name        text        NOT NULL,
    version     integer     NOT NULL,
    features    text[]      NOT NULL,
    description text        NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT feature_sets_pkey PRIMARY KEY (name, version),
    CONSTRAINT feature_sets_version CHECK (version >= 1)
);
