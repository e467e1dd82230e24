"""Pure Polars in, pure Polars out: what the features are and how they are computed.

No I/O, no Dagster, no clock: every function depends on its frames alone, whatever their row order.
"""
