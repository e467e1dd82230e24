"""A graph of one asset and one slow job, to start Dagster's processes with."""

import time

import dagster as dg


@dg.asset
def tiny() -> None:
    """Nothing at all."""


@dg.op
def wait() -> None:
    time.sleep(1000)


@dg.job(executor_def=dg.in_process_executor)
def slow() -> None:
    wait()


defs = dg.Definitions(assets=[tiny], jobs=[slow])
