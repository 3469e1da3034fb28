"""Pictures by matplotlib as SVG that goes into a page: text stays text, and colours follow the page's scheme.

Nothing of the caller's matplotlib is used or left changed: no pyplot, no backend, and its settings are put back. Only
one picture is drawn at a time, because settings are global there; a thread of the caller's that draws in that very
moment would see ours.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from onnxrep.escape import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, LINE, ACCENT, SECOND, SURFACE, SOFT, BAD = (f"#0{n}0{n}0{n}" for n in range(1, 9))
"""Colours by their part in the page; the style sheet says what they are in each scheme."""

HEAT = (0.16, 0.42, 0.85)
"""The one fixed colour, of heat maps: it stands out in both schemes, and its opacity says how strong a tap is."""

_NAMES = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    ACCENT: "accent",
    SECOND: "second",
    SURFACE: "surface",
    SOFT: "soft",
    BAD: "bad",
}
_KEPT = ("backend", "webagg", "date")
_SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "onnxrep", "image.composite_image": False, "text.usetex": False}
_lock = threading.Lock()

PREFIX = "picture-of-this-page"
"""What ids in a picture start with; a page puts a number there, so that each id is its only one."""


class Picture:
    """A picture that is drawn: its axes have one unit per pixel, with the origin at the top left."""

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self._figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        self._figure.patch.set_visible(False)
        self.axes: Axes = self._figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self.axes.set_xlim(0, width)
        self.axes.set_ylim(height, 0)

    def plot(self, left: float, top: float, width: float, height: float) -> Axes:
        """Return axes with frame and scale at a place in the picture."""
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        axes = self._figure.add_axes(box)
        axes.patch.set_visible(False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(which="both", length=0, colors=MUTED, labelsize=11)
        axes.grid(visible=True, axis="x", color=LINE, linewidth=0.8)
        axes.set_axisbelow(True)
        return axes

    def text(self, x: float, y: float, text: str, size: float = 12, **settings: Any) -> None:
        """Write text, which may come from anywhere."""
        settings = {"color": INK, "ha": "center", "va": "center", "parse_math": False, **settings}
        self.axes.text(x, y, printable(text), size=size, **settings)

    def svg(self, title: str, description: str) -> Markup:
        """Return the picture, with what it is called and what it shows for those who do not see it."""
        from matplotlib.backends.backend_svg import FigureCanvasSVG

        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(self._figure).print_svg(file, metadata=nothing)  # type: ignore[no-untyped-call]
        return _inline(file.getvalue(), title, description, self.width, self.height)


@contextmanager
def picture(width: float, height: float) -> Iterator[Picture]:
    """Give a picture to draw on, with settings that are not the caller's."""
    import matplotlib as mpl

    settings: dict[Any, Any] = {k: v for k, v in mpl.rcParamsDefault.items() if not k.startswith(_KEPT)}
    with _lock, mpl.rc_context():
        mpl.rcParams.update(settings | _SETTINGS)
        yield Picture(width, height)


def _inline(text: str, title: str, description: str, width: float, height: float) -> Markup:
    """Return an SVG file as an element of a page."""
    root = ElementTree.fromstring(text)  # noqa: S314  matplotlib wrote it
    prefix = PREFIX
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("metadata", "style")):
                parent.remove(child)
    used = {value[1:] for e in root.iter() for k, value in e.attrib.items() if k.endswith("href") and value[:1] == "#"}
    used |= {v[5:-1] for e in root.iter() for v in e.attrib.values() if v.startswith("url(#")}
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        kept = {k: v for k, v in element.attrib.items() if k != "id" or v in used}
        element.attrib = {k.rpartition("}")[2]: _value(k, v, prefix) for k, v in kept.items()}
    label = ElementTree.Element("title")
    label.text = printable(title)
    long = ElementTree.Element("desc")
    long.text = printable(description)
    for element, name in ((label, "title"), (long, "desc")):
        element.set("id", f"{prefix}-{name}")
    root[:0] = [label, long]
    root.attrib = {
        "viewBox": f"0 0 {width:g} {height:g}",
        "width": f"{width:g}",
        "height": f"{height:g}",
        "role": "img",
        "aria-labelledby": f"{prefix}-title {prefix}-desc",
    }
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704  written by an XML writer


def _value(name: str, value: str, prefix: str) -> str:
    """Return an attribute's value with colours by name and ids that are the page's only ones."""
    name = name.rpartition("}")[2]
    if name == "id":
        return f"{prefix}-{value}"
    if name == "href" and value.startswith("#"):
        return f"#{prefix}-{value[1:]}"
    if value.startswith("url(#"):
        return f"url(#{prefix}-{value[5:]}"
    if name == "style":
        for colour, word in _NAMES.items():
            value = value.replace(colour, f"var(--{word})")
    return value
