"""What stands on the page of one model, from its records: words, and folds of equal structure together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from onnxrep.reasons import ADVICE
from onnxrep.report.page import graphs, plots
from onnxrep.report.page.graphs import Box
from onnxrep.report.records import Emitted, Fold, Refusal, RegionNode, Report

_NONE = Markup()
_TIMES = "\N{MULTIPLICATION SIGN}"
_COUNTED = ("Conv", "ConvTranspose", "BatchNormalization", "Add", "Mul")


@dataclass(frozen=True)
class Summary:
    """The answer in a few words: what happened, can it be trusted (tone: good, note, bad), and what to do next."""

    title: str
    tone: str
    text: str
    then: str = ""


@dataclass
class Group:
    """Folds of one structure."""

    title: str
    merge: bool
    folds: list[Fold]
    before: Markup = _NONE
    after: Markup = _NONE
    kernels: Markup = _NONE
    places: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Left:
    """Nodes that were left alone for one reason."""

    code: str
    meaning: str
    advice: str
    refusals: list[Refusal]


def summary(report: Report, *, planned: bool) -> Summary:
    """Say what became of a model."""
    count = len(report.folds)
    regions = "1 region" if count == 1 else f"{count} regions"
    verdict, why = (
        ("", "") if report.verification is None else (report.verification.verdict, report.verification.reason)
    )
    if planned:
        if not count:
            return Summary("Nothing to fold", "note", "No region of this model can be merged. It stays as it is.")
        text = f"{regions} of this model would be replaced by fewer nodes that compute the same."
        return Summary("Can be folded", "note", text, "Run onnxrep optimize on it to write the folded model.")
    if report.status == "unchanged":
        return Summary("Nothing to fold", "note", "No region of this model can be merged. It stays as it was.")
    if report.status == "rejected":
        text = f"The folded model was not the same function, so it was thrown away: {why}"
        return Summary("Rejected", "bad", text, "Nothing was written. Keep the original, and please report this.")
    if report.status == "unverified" or verdict == "unverified":
        then = "It was written because --allow-unverified asks for it." if report.output else "Nothing was written."
        return Summary("Could not be verified", "bad", f"{regions} folded, but the check could not decide: {why}", then)
    if report.verification is None:
        text = f"{regions} folded. Each has its own proof, but the models as a whole were not compared (--no-verify)."
        return Summary("Folded, not verified", "note", text, "Run onnxrep verify on both models.")
    text = f"{regions} replaced by fewer nodes that compute the same. Compared with a reference in float64, the new "
    text += "model is as exact as the original."
    return Summary("Folded and verified", "good", text)


def counts(report: Report) -> list[tuple[str, int, int]]:
    """Return op type, number before and after: what changed, the convolution's kin first."""
    before, after = report.counts_before, report.counts_after
    rows = [op for op in _COUNTED if before.get(op, 0) or after.get(op, 0)]
    changed = {op for op in before.keys() | after.keys() if before.get(op, 0) != after.get(op, 0)} - set(_COUNTED)
    return [(op, before.get(op, 0), after.get(op, 0)) for op in (*rows, *sorted(changed))]


def left(report: Report) -> list[Left]:
    """Return the refusals by reason, the most frequent first."""
    by_code: dict[str, list[Refusal]] = {}
    for refusal in report.refusals:
        by_code.setdefault(refusal.code, []).append(refusal)
    found = [Left(code, every[0].meaning, ADVICE.get(code, ""), every) for code, every in by_code.items()]
    return sorted(found, key=lambda each: -len(each.refusals))


def groups(report: Report) -> list[Group]:
    """Return the folds by structure, parallel branches first, with their pictures."""
    by_structure: dict[Any, list[Fold]] = {}
    for fold in report.folds:
        by_structure.setdefault(_structure(fold), []).append(fold)
    ordered = sorted(by_structure.values(), key=lambda folds: (folds[0].kind != "merge", -len(folds)))
    return [_group(folds) for folds in ordered]


def _structure(fold: Fold) -> Any:
    """Return what is equal for folds whose pictures are."""
    return fold.kind, _boxes(fold.removed, fold.sources), _boxes(fold.emitted, fold.sources)


def _group(folds: list[Fold]) -> Group:
    """Return a group with its pictures."""
    first = folds[0]
    went, came = (Counter(n.op for n in nodes) for nodes in (first.removed, first.emitted))
    group = Group(f"{_listed(went)} → {_listed(came)}", first.kind == "merge", folds)
    for nodes, side, words in ((first.removed, "before", "Before"), (first.emitted, "after", "After")):
        boxes = _boxes(nodes, first.sources)
        text = f"{words}: " + "; ".join(f"{b.title} {b.note}".strip() for b in boxes)
        setattr(group, side, graphs.draw(boxes, len(first.sources), words, text))
    convolutions = [n for fold in folds for n in fold.emitted if n.op in ("Conv", "ConvTranspose")]
    group.kernels = plots.kernels(convolutions if len(convolutions) == len(folds) else convolutions[:1])
    for fold in folds:
        channels = next((f"{n.channels[0]} → {n.channels[1]}" for n in fold.emitted if n.channels), "")
        place = f"{fold.scope}: {fold.output}" if fold.scope else fold.output
        group.places.append((place, channels, f"{fold.certificate.error:.1g}"))
    return group


def _boxes(nodes: Sequence[RegionNode | Emitted], sources: Sequence[str]) -> tuple[Box, ...]:
    """Return nodes as boxes that read each other by number."""
    number = {name: -1 - place for place, name in enumerate(sources)}
    boxes = []
    for place, node in enumerate(nodes):
        reads = tuple(number[name] for name in node.inputs if name in number)
        boxes.append(Box(node.op, _note(node), reads))
        number |= dict.fromkeys(node.outputs, place)
    return tuple(boxes)


def _note(node: RegionNode | Emitted) -> str:
    """Return what tells a node from others of its op type, in a few characters."""
    given = node.attributes if isinstance(node, RegionNode) else vars(node)
    if node.op not in ("Conv", "ConvTranspose"):
        several = node.op in ("Add", "Sub", "Mul", "Div")
        return "constant" if several and len(node.inputs) < 2 and node.constants else ""
    weight = next((dims for dims in node.constants if len(dims) > 2), ())
    words = [_TIMES.join(map(str, given.get("kernel_shape") or weight[2:]))]
    for name, short in (("strides", "/"), ("dilations", "dil ")):
        values = given.get(name) or ()
        if any(v != 1 for v in values):
            words.append(short + _TIMES.join(map(str, values if len(set(values)) > 1 else values[:1])))
    group = given.get("group", 1)
    if group > 1:
        words.append("depthwise" if weight and weight[1] == 1 else "grouped")
    return " ".join(words)


def _listed(ops: Counter[str]) -> str:
    """Return op types with their numbers."""
    return " + ".join(f"{count} {op}" for op, count in ops.items())
