"""Time per op type, from the profile that ONNX Runtime writes."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from onnxrep import machine
from onnxrep.proof.sessions import Feeds, Runtime
from onnxrep.proof.sides import Side

_RUNS, _WARM_UP = 8, 3
_KERNEL = "_kernel_time"


def time_per_op(side: Side, runtime: Runtime, feeds: Feeds) -> tuple[dict[str, float], dict[str, int]]:
    """Return seconds per inference, and nodes that ran, by op type; the most expensive first.

    Raises:
        CannotRun: ONNX Runtime does not load or run the model.

    """
    with machine.scratch() as folder:
        session = runtime.session(side.serialized, "all", side.folder, flush=True, profile=folder / "profile")
        once = session.repeatable(feeds)
        try:
            for _ in range(_RUNS):
                once()
        finally:
            path = session.profile()
        return parsed(path, _WARM_UP)


def parsed(path: Path, skipped: int) -> tuple[dict[str, float], dict[str, int]]:
    """Return what :func:`time_per_op` does from a profile: the medians of all runs but the first ``skipped``.

    Nodes inside the body of an If, Loop or Scan count for themselves; the time of the node around them is left out, as
    it holds theirs.
    """
    events = [e for e in json.loads(path.read_text()) if isinstance(e, dict) and "dur" in e]
    starts = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == "model_run")[skipped:]
    kernels = [e for e in events if e.get("cat") == "Node" and str(e.get("name")).endswith(_KERNEL)]
    runs = [[e for e in kernels if first <= e["ts"] < last] for first, last in starts]
    seconds: dict[str, list[float]] = defaultdict(list)
    counts: Counter[str] = Counter()
    for run in runs:
        mine: dict[str, float] = defaultdict(float)
        count: Counter[str] = Counter()
        for event in run:
            arguments: Mapping[str, Any] = event.get("args", {})
            op = str(arguments.get("op_name", "?"))
            if op not in ("If", "Loop", "Scan"):
                mine[op] += event["dur"] * 1e-6
                count[op] += 1
        counts |= count
        for op, spent in mine.items():
            seconds[op].append(spent)
    total = {op: float(median(s + [0.0] * (len(runs) - len(s)))) for op, s in seconds.items()}
    order = sorted(total, key=lambda op: (-total[op], op))
    return {op: total[op] for op in order}, {op: counts[op] for op in order}
