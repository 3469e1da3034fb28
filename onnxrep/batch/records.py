"""What a batch is told, and what it tells: plain data, known to parent and child."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

from onnxrep.options import ModelOptions

FINAL = frozenset("folded unchanged rejected unverified invalid unsupported".split())
"""The same input would give the same again, so a resumed run leaves it."""

STATUSES = (
    "folded",
    "unchanged",
    "rejected",
    "unverified",
    "invalid",
    "unsupported",
    "timeout",
    "oom",
    "crashed",
    "error",
)
"""What can become of a model, in the order of the final table."""

LARGER = "larger"
"""What a child says that found more data than the batch knew of: it is started again with more memory."""

_BASE = 512 << 20
_TIMES = 20
"""A model is expected to need ``_BASE`` bytes and ``_TIMES`` its size (real exports of 75 to 160 MB took 20 to 25)."""


def expected(size: int) -> int:
    """Return the bytes of memory that a model of so many bytes, external data included, is expected to need."""
    return _BASE + _TIMES * size


EARLIER = "; what lies at its place in the output folder is not from this run"
"""What a failure's reason ends with where that is so."""

GOOD = frozenset({"folded", "unchanged"})
"""What is no failure; ``unverified`` is none either where it is allowed."""


@dataclass(frozen=True)
class BatchOptions(ModelOptions):
    """How a batch is treated.

    Attributes:
        verify, provider, input_shapes, input_ranges, input_data: for each model; see :class:`onnxrep.options.Options`.
        allow_unverified, inline_functions, external_data, follow_symlinks, hf_cache, custom_ops_lib: likewise.
        only_nodes, exclude_nodes, kinds: likewise.
        include, exclude: patterns for the models' relative paths; see :func:`onnxrep.batch.discover.find`.
        jobs: models at a time; 0 for one per core.
        threads: for ONNX Runtime, per model; 0 for an equal share of the cores.
        memory: bytes that all models together may take; 0 for half of what the machine has.
        timeout: seconds of wall-clock time per model.
        dry_run: say what would fold; write nothing.
        retry_failed: try models again that failed in a former run, also where they would fail again.

    """

    only_nodes: tuple[str, ...] = ()
    exclude_nodes: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    jobs: int = 0
    threads: int = 0
    memory: float = 0.0
    timeout: float = 600.0
    dry_run: bool = False
    retry_failed: bool = False

    def for_model(self) -> dict[str, Any]:
        """Return the options of one model as JSON can hold them."""
        ours = ("include", "exclude", "jobs", "threads", "memory", "timeout", "dry_run", "retry_failed")
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ours}
        data = None if self.input_data is None else str(self.input_data.absolute())
        pairs = {name: {k: list(v) for k, v in given[name].items()} for name in ("input_shapes", "input_ranges")}
        libraries = [str(path.absolute()) for path in self.custom_ops_lib]
        names = {name: list(given[name]) for name in ("only_nodes", "exclude_nodes", "kinds")}
        return given | pairs | names | {"input_data": data, "custom_ops_lib": libraries}


@dataclass(frozen=True)
class Outcome:
    """What became of one model.

    Attributes:
        model: its relative path.
        status: one of :data:`STATUSES`.
        reason: one line if it failed, else mostly empty.
        folds: how many regions were replaced.
        seconds: what it took.
        resumed: a former run's record still stands, and nothing was done.

    """

    model: str
    status: str
    reason: str
    folds: int
    seconds: float
    resumed: bool = False


@dataclass(frozen=True)
class Summary:
    """What became of a batch, model by model in the order of their names."""

    outcomes: tuple[Outcome, ...]
    allowed: frozenset[str] = GOOD

    @property
    def counts(self) -> dict[str, int]:
        """Status -> number of models, in the order of :data:`STATUSES`."""
        found = Counter(outcome.status for outcome in self.outcomes)
        return {status: found[status] for status in STATUSES if found[status]}

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The models that failed."""
        return tuple(outcome for outcome in self.outcomes if outcome.status not in self.allowed)

    @property
    def ok(self) -> bool:
        """Whether no model failed."""
        return not self.failures
