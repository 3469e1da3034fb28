"""Lines, figures and names as they go to a terminal."""

from __future__ import annotations

from rich import markup
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from onnxrep.escape import printable

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def shown(text: str) -> str:
    """Return text of others as it may go to a terminal: no control characters, and no markup."""
    return markup.escape(printable(text))


def say(console: Console, line: str, indent: int = 0, style: str = "") -> None:
    """Print a line with markup; where a terminal is too narrow for it, it goes on with the same indent."""
    console.print(Padding.indent(Text.from_markup(line, style=style), indent), highlight=False)


def size(count: float) -> str:
    """Return a number of bytes in the unit that fits."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def amount(count: float) -> str:
    """Return a number in three digits or so, with the unit that fits."""
    for unit, letter in _UNITS:
        if count >= unit:
            return f"{count / unit:.3g} {letter}"
    return f"{count:g}"


def change(before: float, after: float) -> str:
    """Return a change in percent; empty if there is none."""
    if before == after or not before:
        return ""
    return f"{100 * (after / before - 1):+.1f} %"


def counted(count: int, word: str) -> str:
    """Return a number of things."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
