"""Published blocks in plain onnx, each with its variations and with what must come out."""

from __future__ import annotations

from collections.abc import Iterator

from models.blocks import seeds
from models.blocks.base import Block, count

__all__ = ["Block", "catalogue", "count", "seed_blocks"]


def seed_blocks() -> Iterator[Block]:
    """Yield the blocks of the five systems that must be replaced completely."""
    yield from seeds.blocks()


def catalogue() -> Iterator[Block]:
    """Yield every block of the catalogue."""
    yield from seed_blocks()
