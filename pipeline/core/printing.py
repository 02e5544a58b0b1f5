"""Text of unknown origin on a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""A text in which what a terminal would obey, or cannot show, is spelled; line breaks stay.

    >>> printable("name \x1b[2J\udcff\nä")
    'name \\x1b[2J\\udcff\nä'
    """
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode()
        for letter in text
    )
