"""Pictures and glances as the Dagster UI shows them: markdown with the image inside.

Names come from data: nothing in them is read as markup.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from urllib.parse import quote

from feature_pipeline.pictures.glance import MOST_CHARACTERS
from feature_pipeline.pictures.style import Picture, one_line

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
_SAFE = "=':/,"


def page(pictures: Sequence[Picture], nothing: str) -> str:
    """The pictures with their captions; `nothing` is said where there is none."""
    if not pictures:
        return escape(nothing)
    return "\n\n".join(
        f"![{escape(p.title)}](data:image/png;base64,{base64.b64encode(p.png).decode()})"
        f"\n\n{escape(p.caption)}"
        for p in pictures
    )


def inline(text: str, svg: str) -> str:
    """One line of text and a sparkline, short enough to be shown in place.

    A sparkline that would make it too long is left out, and so is the end of too long a text.
    """
    said = escape(one_line(text, 200))
    if svg:
        # Nothing that ends the address or is read as markup may stand in it as it is.
        image = f"![ ](data:image/svg+xml,{quote(svg, safe=_SAFE)})"
        if len(image) + len(said) + 2 <= MOST_CHARACTERS:
            return f"{said}\n\n{image}"
    return said[:MOST_CHARACTERS]


def escape(text: str) -> str:
    """Text that reads as itself in markdown: one line, a backslash before all punctuation."""
    return _PUNCTUATION.sub(r"\\\1", one_line(text))
