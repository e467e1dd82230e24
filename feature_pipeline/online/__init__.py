"""Redis: what its keys are called and hold, how they are written, how they are read.

`keys` has the names and the packed format, `client` the connections, `publish` the one way to
write, `rebuild` what to do when Redis was lost, `read` the answers. What a feature means, and
which rows are the newest, is decided elsewhere.
"""
