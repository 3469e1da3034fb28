"""Text that others wrote, made fit for a terminal."""

from __future__ import annotations


def printable(text: str | bytes) -> str:
    """Return text with control characters escaped: names in a model, and of files, are untrusted.

    Bytes are what protobuf hands out for a name that is no UTF-8.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """Return text without line breaks, and without control characters."""
    return printable(" ".join(text.splitlines()))
