"""Published blocks in plain onnx, each with its variations and with what must come out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from models.blocks import beyond, channels, linear, refusals, seeds, sequences, sums, sums_mobile, weights
from models.blocks.base import Block, count

__all__ = ["SECTIONS", "Block", "catalogue", "count", "seed_blocks"]

SECTIONS: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "The five systems that must be replaced completely": (seeds,),
        "Plain sums of branches": (sums, sums_mobile),
        "Sequences and composed branches": (sequences,),
        "Generated weights": (weights,),
        "Linear layers, adapters, heads": (linear,),
        "Channels: concatenated, split, shuffled; scales and transposed convolutions": (channels,),
        "Beyond the deploy form": (beyond,),
        "What looks foldable and is not": (refusals,),
    }
)
"""Title -> the modules whose ``blocks()`` belong there."""


def seed_blocks() -> Iterator[Block]:
    """Yield the blocks of the five systems that must be replaced completely."""
    yield from seeds.blocks()


def section(title: str) -> Iterator[Block]:
    """Yield the blocks of one section of the catalogue."""
    for module in SECTIONS[title]:
        yield from module.blocks()  # type: ignore[attr-defined]


def catalogue() -> Iterator[Block]:
    """Yield every block of the catalogue."""
    for title in SECTIONS:
        yield from section(title)
