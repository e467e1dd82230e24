-- depends: 0003_ledger
-- For whom a day of events was collected: the ledger names the group of instruments by its digest,
-- so that one who joins later is asked for alone.

CREATE TABLE collected_for (
    digest   text        NOT NULL,
    symbols  text[]      NOT NULL,
    since    timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT collected_for_pkey PRIMARY KEY (digest)
);
