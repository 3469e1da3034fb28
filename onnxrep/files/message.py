"""A model's message as bytes.

Protobuf's Python library writes a message into one buffer, which it doubles until all fits, and writes it a second time
to tell its size. For a model that is several times the memory of its weights. So the weights are written one by one.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import onnx
from google.protobuf.message import EncodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from onnxrep.files.tensors import tensor_bytes

LARGEST_MESSAGE = (1 << 31) - 1
"""Bytes that a protobuf message may have."""

_SMALL, _EACH = 1 << 20, 1 << 12
"""Bytes of initializers, and bytes per node and initializer, up to which a message is written as one."""

_DELIMITED = 2
"""The wire type of what has its length in front; see https://protobuf.dev/programming-guides/encoding/."""


class MessageTooLarge(ValueError):
    """The message has more bytes than protobuf allows."""


def serialized(model: onnx.ModelProto) -> bytes:
    """Return the bytes of a model, the same as ``model.SerializeToString(deterministic=True)``.

    Raises:
        MessageTooLarge: they are more than protobuf allows.

    """
    graph = model.graph
    weights, parts = sum(map(tensor_bytes, graph.initializer)), len(graph.node) + len(graph.initializer)
    plain = weights < max(_SMALL, _EACH * parts) or not model.HasField("graph")
    try:
        if plain or len(UnknownFieldSet(model)) or len(UnknownFieldSet(graph)):
            return _checked(model.SerializeToString(deterministic=True))
        return _written(model)
    except EncodeError:  # a part alone is too large
        raise MessageTooLarge from None


def _written(model: onnx.ModelProto) -> bytes:
    """Return the bytes of a model, its initializers written one by one."""
    graph = model.graph
    lengths = [tensor.ByteSize() for tensor in graph.initializer]
    number, first, last = _around(graph, "initializer")
    size = len(first) + sum(len(_head(number, n)) + n for n in lengths) + len(last)
    outer, before, behind = _around(model, "graph")
    if len(before) + len(_head(outer, size)) + size + len(behind) > LARGEST_MESSAGE:
        raise MessageTooLarge
    result = io.BytesIO()
    result.write(before + _head(outer, size) + first)
    for tensor, length in zip(graph.initializer, lengths, strict=True):
        result.write(_head(number, length))
        result.write(tensor.SerializeToString(deterministic=True))
    result.write(last + behind)
    return result.getvalue()


def _checked(data: bytes) -> bytes:
    """Return the bytes of a message that is not too large."""
    if len(data) > LARGEST_MESSAGE:
        raise MessageTooLarge
    return data


def _around(message: Message, name: str) -> tuple[int, bytes, bytes]:
    """Return the number of a field, and the bytes of what comes before and behind it: fields stand by their numbers."""
    number: int = message.DESCRIPTOR.fields_by_name[name].number
    parts: tuple[list[bytes], list[bytes]] = [], []
    for field, value in message.ListFields():
        if field.number != number:
            parts[field.number > number].extend(_field(message, field.number, field.name, value))
    before, behind = map(b"".join, parts)
    return number, before, behind


def _field(message: Message, number: int, name: str, value: Any) -> Iterator[bytes]:
    """Yield the bytes of one field; messages in it are not copied. A text that is no UTF-8 comes as bytes."""
    for part in value if hasattr(value, "MergeFrom") and not isinstance(value, Message) else [value]:
        if isinstance(part, int | float):
            yield type(message)(**{name: part}).SerializeToString(deterministic=True)
            continue
        data = part.SerializeToString(deterministic=True) if isinstance(part, Message) else part
        data = data.encode() if isinstance(data, str) else data
        yield _head(number, len(data)) + data


def _head(number: int, length: int) -> bytes:
    """Return what stands in front of a field that has its length in front: number and length, seven bits a byte."""
    result = bytearray()
    for value in (number << 3 | _DELIMITED, length):
        rest = value
        while rest > 0x7F:
            result.append(rest & 0x7F | 0x80)
            rest >>= 7
        result.append(rest)
    return bytes(result)
