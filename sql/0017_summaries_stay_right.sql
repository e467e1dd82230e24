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
