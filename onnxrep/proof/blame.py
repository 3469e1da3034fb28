"""Which folds of a rejected model are wrong by themselves: each alone, between values that the original makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np

from onnxrep.proof.errors import CannotRun, NoTwin
from onnxrep.proof.inputs import CONSTANT_SETS, Wishes, cropped, index_limits, input_sets, seed_of
from onnxrep.proof.judge import OutputFigures, compare, settle
from onnxrep.proof.original import LEVELS
from onnxrep.proof.parts import part, places_of
from onnxrep.proof.reference import session_of_twin
from onnxrep.proof.sessions import Runtime
from onnxrep.proof.sides import Side, roundoff_of

_SKIPPED = (*CONSTANT_SETS, "uniform")
"""Input sets that show nothing here that the others do not."""


def suspects(
    before: Side, after: Side, folds: Sequence[tuple[str, Sequence[str]]], runtime: Runtime, wishes: Wishes
) -> set[str]:
    """Return the outputs of folds that differ although they read just what the original makes there.

    A fold is not blamed for what comes to it wrong already, nor where it cannot be run by itself.

    Args:
        before: the original.
        after: the folded model.
        folds: of the main graph: the value that each makes, and those that it reads.
        runtime: where both run.
        wishes: the user's inputs.

    Raises:
        CannotRun, NoInput: the original does not run.

    """
    roundoff = roundoff_of(before.model, after.model)
    places = places_of(before.model, after.model, folds)
    figures: dict[str, list[OutputFigures]] = {output: [] for output in places}
    for name, values in _activations(before, {n for reads in places.values() for n in reads}, runtime, wishes):
        for output in list(figures):
            given = {n: values[n] for n in places[output]}
            sides = [Side(part(s.model, output, given), None, s.folder) for s in (before, after)]
            try:
                figures[output].append(_figures(sides[0], sides[1], output, name, given, runtime))
            except (CannotRun, NoTwin):
                del figures[output]
    return {o for o, mine in figures.items() if any(f.status == "different" for f in settle(mine, roundoff))}


def _activations(
    before: Side, names: Set[str], runtime: Runtime, wishes: Wishes
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield input sets, each with what the original makes of it at some values."""
    made = {o for node in before.model.graph.node for o in node.output} - {v.name for v in before.model.graph.output}
    inside = cropped(before.model)
    watching = runtime.session(before.with_outputs(sorted({*(names & made), *inside})), "off", before.folder)
    seed, limits = seed_of(before.serialized), index_limits(before.model)
    for inputs in input_sets(watching, wishes, seed, limits, lambda shapes: None, inside):
        if not inputs.name.startswith(_SKIPPED):
            yield inputs.name, {**inputs.feeds, **watching.run(inputs.feeds)}


def _figures(
    before: Side, after: Side, output: str, name: str, given: Mapping[str, Any], runtime: Runtime
) -> OutputFigures:
    """Compare one value on one set of what it is made from."""
    twin, _ = session_of_twin(before.model, before.folder, Runtime("cpu", runtime.threads), None)
    wide = {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in given.items()}
    old, new = (
        [runtime.session(side.serialized, level, side.folder).run(given)[output] for level in LEVELS]
        for side in (before, after)
    )
    return compare(output, name, old, new, twin.run(wide)[output])
