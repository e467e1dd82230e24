"""What goes wrong with one ticker alone. Apart, because importing `client.py` imports yfinance."""

from feature_pipeline.errors import SourceError


class RefusedError(SourceError):
    """An answer about this one question: Yahoo is there, and what it says cannot be used."""
