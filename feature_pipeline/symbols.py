"""What a symbol may look like: the one allow-list, for every symbol that comes from outside.

What passes is harmless as a key, a path, a word of a command and a line of a log. Whether something
of that name exists is the universe's to say. No I/O.
"""

from __future__ import annotations

import re

from feature_pipeline.errors import UniverseError

SYMBOL_PATTERN = r"[A-Z0-9^][A-Z0-9.^=_-]{0,31}"
"""A whole symbol: `AAPL`, `BRK.B`, `7203.T`, `BTC-USD`, `EURUSD=X`, `^GSPC`."""

TICKER_PATTERN = r"[A-Za-z0-9^][A-Za-z0-9.^=_:-]{0,31}(/[A-Za-z0-9^][A-Za-z0-9.^=_:-]{0,31})?"
"""What a provider calls an instrument: `EUR/USD`, `BTC/USDT:USDT`, `eurusd` as well."""

_SYMBOL = re.compile(SYMBOL_PATTERN, re.ASCII)
_TICKER = re.compile(TICKER_PATTERN, re.ASCII)
_SHOWN = 40


def is_symbol(text: str) -> bool:
    """Whether it may be one: an instrument's id or symbol, the id of a macro series."""
    return _SYMBOL.fullmatch(text) is not None


def is_ticker(text: str) -> bool:
    """Whether it may be what a provider calls an instrument."""
    return _TICKER.fullmatch(text) is not None


def checked_symbol(text: str) -> str:
    """The text, if it may be a symbol.

    Raises:
        UniverseError: it may not; nothing of it must reach a statement, a key or a path.
    """
    if is_symbol(text):
        return text
    raise UniverseError(f"{quoted(text)} is no symbol: {why_no_symbol(text)}")


def why_no_symbol(text: str) -> str:
    """What to write instead of a text that is none."""
    if is_symbol(text.upper()) and text.isascii():
        return f"symbols are in capitals, write {text.upper()}"
    return "write 1 to 32 of A-Z, 0-9 and . ^ = _ -, the first of them a letter, a digit or ^"


def quoted(text: str) -> str:
    """Any text as an error may show it: in ASCII, on one line, and no longer than people read."""
    return ascii(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
