"""What a table looks like: Polars frames in, small PNG pictures and one-line sparklines out.

Pure: no I/O, no Dagster, no clock, and no knowledge of which asset asks. `style` is the one look,
`prices`, `events` and `grids` are the pictures, `glance` what fits into a table cell, `markdown`
how both are shown. matplotlib is imported when the first picture is drawn, never before.
"""
