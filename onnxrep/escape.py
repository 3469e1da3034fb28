"""Text that others wrote, made fit for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return text with control characters escaped: names in a model, and of files, are untrusted."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """Return text without line breaks, and without control characters."""
    return printable(" ".join(text.splitlines()))
