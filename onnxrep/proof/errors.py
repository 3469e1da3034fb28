"""What keeps the check from deciding."""

from __future__ import annotations


class NoTwin(Exception):
    """The model has no float64 twin; the text says why."""


class NeedsSizes(NoTwin):
    """A twin for all sizes cannot be written, but one for given sizes perhaps."""


class NoInput(Exception):
    """No legal input could be made; the text says why."""


class CannotRun(Exception):
    """ONNX Runtime cannot load or run a model; the text is its first line."""
