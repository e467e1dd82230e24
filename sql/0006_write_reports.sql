-- depends: 0005_views
-- What became of every row that a source or a computation handed in: one row per write and source.
-- input = outside + written + unchanged + duplicate + unfinished + fenced + quarantined, each counted
-- where it happens; `outside` are rows of the lookback, which a computation returns and does not offer.

CREATE TABLE write_reports (
    id          bigint      GENERATED ALWAYS AS IDENTITY,
    asset       text        NOT NULL,
    source      text        NOT NULL,
    run_id      text        NOT NULL,
    token       bigint      NOT NULL,
    first_day   date        NOT NULL,
    last_day    date        NOT NULL,
    days        bigint      NOT NULL,
    input       bigint      NOT NULL,
    outside     bigint      NOT NULL,
    written     bigint      NOT NULL,
    unchanged   bigint      NOT NULL,
    duplicate   bigint      NOT NULL,
    unfinished  bigint      NOT NULL,
    fenced      bigint      NOT NULL,
    quarantined bigint      NOT NULL,
    at          timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT write_reports_pkey PRIMARY KEY (id),
    CONSTRAINT write_reports_days CHECK (first_day <= last_day)
);
CREATE INDEX write_reports_run ON write_reports (run_id, asset);
CREATE INDEX write_reports_asset ON write_reports (asset, last_day);
