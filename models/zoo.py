"""Fold every real export, verify it, and print one table: ops before, after, and in the framework's deploy form.

    python -m models.zoo [--no-verify] [PATTERN ...]

Counted are Conv, BatchNormalization and Add nodes that depend on the model's input. (An exporter that was told to fold
no constants leaves a few Adds of constants; runtimes compute those once, at load.) A Concat of an enlarged image that
was taken apart has one Conv and one Add more, for less arithmetic; these two are not held against it.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
from dataclasses import dataclass

import onnx
from rich.console import Console
from rich.table import Table

from models import skeletons
from models.half import half, tamed
from onnxrep import Options, optimize

DEPLOY = {"yolov9t_dyn": "yolov9t_dyn/deploy_dynamic"}
"""Deploy forms whose name does not follow from the exporter's."""


@dataclass(frozen=True)
class Counts:
    """Nodes of a model that depend on its input."""

    conv: int
    bn: int
    add: int

    def __str__(self) -> str:
        return f"{self.conv}/{self.bn}/{self.add}"


@dataclass(frozen=True)
class Row:
    """What became of one export."""

    name: str
    before: Counts
    after: Counts
    goal: Counts | None
    deploy: str
    status: str
    verdict: str
    reason: str
    worst: str
    seconds: float
    apart: int = 0

    @property
    def reached(self) -> bool:
        """Whether no more nodes remain than in the deploy form.

        Not counted is the Conv and the Add that it takes to take a Concat apart, which does less arithmetic.
        """
        if self.goal is None:
            return self.before.conv == self.after.conv - self.apart
        mine = (self.after.conv - self.apart, self.after.bn, self.after.add - self.apart)
        theirs = (self.goal.conv, self.goal.bn, self.goal.add)
        return all(a <= g for a, g in zip(mine, theirs, strict=True))


def variants(model: str) -> list[str]:
    """Return the training variants of a model."""
    return [n.partition("/")[2] for n in skeletons.names() if n.startswith(f"{model}/train")]


def counts(model: onnx.ModelProto) -> Counts:
    """Count the nodes that depend on the model's input."""
    constant = {t.name for t in model.graph.initializer}
    found = {"Conv": 0, "BatchNormalization": 0, "Add": 0}
    for node in model.graph.node:
        if all(i in constant for i in node.input if i):
            constant.update(node.output)
        elif node.op_type in found:
            found[node.op_type] += 1
    return Counts(found["Conv"], found["BatchNormalization"], found["Add"])


def deploy_form(name: str) -> tuple[str, int]:
    """Return the deploy form to compare with, and how many Adds more this exporter writes than that one's.

    That is the one of the same exporter if there is one; else the other's, corrected by the difference that the two
    exporters make in the number of Adds of the training form.
    """
    model, _, variant = name.partition("/")
    present = set(skeletons.names())
    if model in DEPLOY:
        return DEPLOY[model], 0
    own = f"{model}/deploy_{'dynamo' if 'dynamo' in variant else 'legacy'}"
    if own in present:
        return own, 0
    other = f"{model}/deploy_legacy"
    return (other, _exporter_difference(model)) if other in present else ("", 0)


def _exporter_difference(model: str) -> int:
    """Return how many Adds more the dynamo export of a model has than its legacy export, idle ones left out."""
    dynamo = counts(skeletons.fill(f"{model}/train_dynamo")).add
    legacy = next((v for v in ("train_legacy", "train_legacy_bn") if f"{model}/{v}" in skeletons.names()), None)
    if legacy is None:
        return 0
    proto = skeletons.fill(f"{model}/{legacy}")
    idle = sum(1 for n in proto.graph.node if n.op_type == "Add" and _adds_zero(proto, n))
    return dynamo - (counts(proto).add - idle)


def _adds_zero(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Whether an Add has a constant scalar operand."""
    scalars = {n.output[0] for n in model.graph.node if n.op_type == "Constant" and not n.attribute[0].t.dims}
    return any(i in scalars for i in node.input)


def fold_one(name: str, verify: bool = True, *, narrow: bool = False) -> Row:
    """Fold one export, in float16 if ``narrow``, and compare it with its deploy form."""
    model = half(tamed(skeletons.fill(name))) if narrow else skeletons.fill(name)
    deploy, more = deploy_form(name)
    goal = None
    if deploy:
        form = counts(skeletons.fill(deploy))
        goal = Counts(form.conv, form.bn, form.add + more)
    start = time.perf_counter()
    result = optimize(model, options=Options(verify=verify))
    seconds = time.perf_counter() - start
    found = result.report.verification
    judged = [o for o in found.outputs if o.status == "same" and o.limit] if found else []
    worst = max((o.ratio / o.limit for o in judged), default=None)
    return Row(
        name,
        counts(model),
        counts(result.model),
        goal,
        deploy,
        result.status,
        found.verdict if found else "-",
        found.reason if found else "",
        "-" if worst is None else f"{worst:.2f}",
        seconds,
        sum(f.kind == "move" and [e.op for e in f.emitted].count("Conv") == 2 for f in result.report.folds),
    )


def main() -> int:
    """Run the table; exit code 1 if an export stays above its deploy form or does not verify.

    In float16 an original may be too far off itself for any judgement; that alone is no failure.
    """
    parser = argparse.ArgumentParser(description="Fold every real export and compare it with its deploy form")
    parser.add_argument("patterns", nargs="*", default=["*"], help="names as model/variant, with wildcards")
    parser.add_argument("--no-verify", action="store_true")
    parser.add_argument("--half", action="store_true", help="in float16")
    arguments = parser.parse_args()
    names = [n for n in skeletons.names() if "/train" in n and any(fnmatch.fnmatch(n, p) for p in arguments.patterns)]
    console = Console(width=None if sys.stdout.isatty() else 150)
    table = Table(
        "export", "before", "after", "deploy", "", "status", "verdict", "worst/limit", "seconds", title="Conv/BN/Add"
    )
    bad = doubtful = 0
    with console.status("folding ...") as status:
        for name in names:
            status.update(f"folding {name}")
            row = fold_one(name, not arguments.no_verify, narrow=arguments.half)
            if not console.is_terminal:
                sys.stderr.write(f"{row.name}: {row.status} {row.verdict} {row.seconds:.1f} s\n")
            fine = row.reached and row.verdict in ("verified", "-")
            doubtful += not fine and row.verdict == "unverified"
            bad += not fine
            mark = "[green]ok[/green]" if fine else "[red]no[/red]"
            goal = "control" if row.goal is None else str(row.goal)
            cells = (row.name, str(row.before), str(row.after), goal, mark, row.status, row.verdict, row.worst)
            table.add_row(*cells, f"{row.seconds:.2f}")
            if row.reason:
                table.add_row("", "", "", "", "", "", row.reason)
    console.print(table)
    console.print(f"{len(names) - bad} of {len(names)} at or below the deploy form and verified (or nothing to verify)")
    if doubtful:
        console.print(f"{doubtful} could not be judged, for the reasons given: they stay as they are")
    return 1 if bad > (doubtful if arguments.half else 0) else 0


if __name__ == "__main__":
    sys.exit(main())
