"""Dagster's daemon, SECONDS in the future: `python -m ...ahead SECONDS run -w workspace.yaml`."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime, timedelta

from dagster import _time


def main() -> None:
    """Run the daemon's own command line, `SECONDS` in the future."""
    ahead = float(sys.argv.pop(1))
    _time._mockable_get_current_datetime = lambda: datetime.now(UTC) + timedelta(seconds=ahead)
    _time._mockable_get_current_timestamp = lambda: time.time() + ahead
    from dagster._daemon.cli import main as daemon

    daemon()


if __name__ == "__main__":
    main()
