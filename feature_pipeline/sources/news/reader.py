"""Reads feeds, as a process of its own that may end over one: what a feed may cost is bounded.

Started by `reading.py` by its path, and imports nothing of ours. From stdin come feeds, to stdout
goes what they say, each as its length (8 bytes, big-endian) and so many bytes. The system ends us
when a feed has taken its CPU seconds; memory is limited as well.
"""

from __future__ import annotations

import calendar
import contextlib
import io
import json
import re
import resource
import signal
import sys
from email.utils import parsedate
from typing import Any

import feedparser

MOST_ENTRIES = 1_000
LONGEST = 200_000
"""Characters of a field that are handed on."""

_ZONE = re.compile(
    r"(?:Z|[+-]\d\d:?\d\d|\b(?:UTC?|GMT|[ECMP][SD]?T|A[SD]T))\W*(?:\([^)]*\))?\s*$", re.IGNORECASE
)
_CLOCK = re.compile(r"\d:\d\d")
_END = re.compile(rb"</\s*(?:\w+:)?(?:rss|feed|rdf)\s*>\s*(?:<!--.*?-->\s*)*$", re.I | re.S)
_HOUR = 3600


def read(data: bytes) -> dict[str, Any]:
    """What a feed says: `entries`, or why it is none, in `error`."""
    if b"<!ENTITY" in data.replace(b"\0", b"")[:65536]:
        return {"error": "declares entities of its own, which no feed needs"}
    found = feedparser.parse(io.BytesIO(data), sanitize_html=False, resolve_relative_uris=False)
    if not found.get("version"):
        return {"error": "answered something that is no feed"}
    entries = found.entries[:MOST_ENTRIES]
    if found.bozo and not _END.search(data.replace(b"\0", b"")[-2000:]):
        entries = entries[:-1]  # cut short, and the last one with it
    return {"entries": [_entry(entry) for entry in entries]}


def _entry(entry: Any) -> dict[str, Any]:
    contents = [part.get("value") for part in entry.get("content") or [] if part.get("value")]
    at, slack = _published(entry)
    fields = {
        "url": entry.get("link"),
        "title": entry.get("title"),
        "text": max([entry.get("summary") or "", *contents], key=len),
        "key": entry.get("id"),
    }
    short = {n: v[:LONGEST] if isinstance(v, str) else None for n, v in fields.items()}
    return {**short, "at": at, "slack": slack}


def _published(entry: Any) -> tuple[int | None, int]:
    """Seconds since 1970, and by how many of them the moment may have been later."""
    for name in ("published", "updated", "created"):
        said = str(dict.get(entry, name) or "")[:100]
        # What has no zone is no date to the one, what is not of a mail's form to the other.
        parsed = dict.get(entry, name + "_parsed") or parsedate(said)
        if parsed:
            slack = 0 if _CLOCK.search(said) else 24 * _HOUR
            slack += 0 if _ZONE.search(said) else 12 * _HOUR
            try:
                return calendar.timegm(parsed), slack
            except (ValueError, OverflowError):
                return None, 0
    return None, 0


def main() -> None:
    """Read until stdin ends. Arguments: CPU seconds of one feed, bytes of memory."""
    seconds, memory = float(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # not everywhere
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started us ends us
    while size := sys.stdin.buffer.read(8):
        data = sys.stdin.buffer.read(int.from_bytes(size, "big"))
        signal.setitimer(signal.ITIMER_PROF, seconds)  # unhandled, its signal ends us
        try:
            answer = read(data)
        except MemoryError:
            answer = {"error": "takes too much memory to read"}
        except Exception as error:  # a parser that was never meant for this
            answer = {"error": f"cannot be read ({type(error).__name__})"}
        text = json.dumps(answer).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(len(text).to_bytes(8, "big") + text)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
