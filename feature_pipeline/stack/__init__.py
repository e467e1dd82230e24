"""The embedded stack: real PostgreSQL and Redis servers, and Dagster's processes, on loopback.

Starting, finding, reusing and stopping them belongs here. What is in the database or in Redis does
not: see storage and online.
"""

from feature_pipeline.stack.stack import Stack

__all__ = ["Stack"]
