"""Write the catalogue as a page: what goes in, what comes out, and what is refused.

    python -m models.blocks.table [FILE]

A test holds the page to the builders, and the builders to what the tool does.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

from models.blocks import SECTIONS, Block, count, section

PAGE = Path(__file__).parents[2] / "docs" / "blocks.md"

_INTRODUCTION = """\
# The catalogue of blocks

Every published block that we know, built in plain onnx with its variations, and what onnxrep makes of it. No block is
recognised by name or by template: each is here so that its graph is tested. Written by `make blocks`.

Notation: `C3` is a convolution of kernel size 3, `+b` with bias, `dw` depthwise; `p s d g` padding, stride, dilation,
groups; `BN` BatchNormalization in inference; `AP` AveragePool; `x` the block's input; `[..]` if shapes allow; `a;b` is
a followed by b. **In** counts the nodes of the training form with every BatchNormalization kept, and behind the slash
(where it differs) as exporters write it, with BatchNormalization folded into the convolution in front. **Out** counts
the nodes that remain, the same for both. **Refused** names the reasons given for what stays (see `onnxrep/reasons.py`).
All blocks are compared with ONNX Runtime before and after, at several sizes, with random weights and, bit for bit, with
small integers.
"""


def page() -> str:
    """Return the page."""
    parts = [_INTRODUCTION, _summary()]
    for title in SECTIONS:
        parts.append(f"## {title}\n")
        for _, same in groupby(section(title), key=lambda b: b.system):
            parts.append(_system(list(same)))
    return "\n".join(parts)


def _summary() -> str:
    """Return how many blocks there are per section."""
    lines = ["| section | blocks | of them with a refusal |", "|---|---|---|"]
    for title in SECTIONS:
        blocks = list(section(title))
        lines.append(f"| {title} | {len(blocks)} | {sum(bool(b.refused) for b in blocks)} |")
    return "\n".join(lines) + "\n"


def _system(blocks: list[Block]) -> str:
    """Return the table of one system."""
    first = blocks[0]
    lines = [f"### {first.system}\n", f"Used in: {first.used}.\n"]
    forms = dict.fromkeys(b.form for b in blocks)
    if len(forms) == 1:
        lines.append(f"Training form: `{first.form}`\n")
    lines += ["| variation | in | out | refused |", "|---|---|---|---|"]
    rows: dict[tuple[str, ...], list[str]] = {}
    for block in blocks:
        words = block.variation or "-"
        rows.setdefault(_cells(block), []).append(f"{words}: `{block.form}`" if len(forms) > 1 else words)
    lines += ["| " + " | ".join(("<br>".join(words), *cells)) + " |" for cells, words in rows.items()]
    return "\n".join(lines) + "\n"


def _cells(block: Block) -> tuple[str, ...]:
    """Return the cells of one row behind the first."""
    kept, folded = (_counts(count(block.model(folded=f))) for f in (False, True))
    before = kept if kept == folded else f"{kept} / {folded}"
    after = _counts(block.left) + (f" (left for now: {block.missing})" if block.missing else "")
    return before, after, ", ".join(sorted(block.refused)) or "-"


def _counts(counts: Mapping[str, int]) -> str:
    """Return op counts in words."""
    return ", ".join(f"{n} {op}" for op, n in sorted(counts.items()))


def main() -> None:
    """Write the page."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    target.parent.mkdir(exist_ok=True)
    target.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
