-- depends: 0008_collected_for
-- What a model made of a text: each text is scored once per model and revision. Its hash alone is
-- kept, so that a text which is erased at its source is not here either.

CREATE TABLE scored_texts (
    text_hash      bytea            NOT NULL,
    model          text             NOT NULL,
    model_revision text             NOT NULL,
    sentiment      double precision NOT NULL,
    label          text             NOT NULL,
    confidence     double precision NOT NULL,
    scored_at      timestamptz      NOT NULL DEFAULT now(),
    CONSTRAINT scored_texts_pkey PRIMARY KEY (text_hash, model, model_revision),
    CONSTRAINT scored_texts_hash CHECK (octet_length(text_hash) = 32)
);
