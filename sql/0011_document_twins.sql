-- depends: 0008_collected_for
-- Whether a news story is there already is asked by its address, of any day (addresses are too long
-- for a B-tree), and by its title, of the days around it.

CREATE INDEX documents_url ON documents USING hash (url);
CREATE INDEX documents_time ON documents (time);
