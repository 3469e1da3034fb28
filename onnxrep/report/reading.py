"""Records again from the plain data that they were written as."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

from onnxrep.report.records import Report


def report(data: Mapping[str, Any]) -> Report:
    """Return the report that :meth:`~onnxrep.report.records.Report.to_dict` made data of; null numbers become NaN.

    Raises:
        TypeError, ValueError, AttributeError: the data is no report.

    """
    found: Report = _made(Report, data)
    return found


def _made(kind: Any, value: Any) -> Any:
    """Return a value as its type wants it."""
    if isinstance(kind, types.UnionType):
        return None if value is None else _made(kind.__args__[0], value)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = _hints(kind)
        return kind(**{name: _made(hints[name], inner) for name, inner in value.items() if name in hints})
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return tuple(_made(k, v) for k, v in zip(kinds, value, strict=True))
    if origin is Mapping:
        return {str(k): _made(parts[1], v) for k, v in value.items()}
    if kind is float:
        return math.nan if value is None else float(value)
    return kind(value) if kind in (int, str, bool) else value


@cache
def _hints(kind: type) -> dict[str, Any]:
    """Return the types of a record's fields."""
    return typing.get_type_hints(kind)
