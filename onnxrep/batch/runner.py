"""Many models: who runs when, with how much memory, and what is recorded."""

from __future__ import annotations

import contextlib
import json
import queue
import unicodedata
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxrep import __version__, machine
from onnxrep.batch import cluster, journal, remote, supervise
from onnxrep.batch.discover import Job, find
from onnxrep.batch.journal import Journal, Record
from onnxrep.batch.lock import NAME as LOCK
from onnxrep.batch.lock import locked
from onnxrep.batch.records import GOOD, LARGER, BatchOptions, Outcome, Summary, expected
from onnxrep.errors import OnnxrepError, OutputError, UsageError
from onnxrep.escape import one_line, printable

_LOOK = 0.2
"""Seconds: the system gives a signal to any thread, but Python acts on it in the main one, once that is awake."""

_DIED = ("timeout", "oom", "crashed")

Progress = Callable[[Outcome, int, int], None]
"""Called after each model with its outcome, how many are done, and how many there are."""


def run_batch(
    inputs: Sequence[str | Path],
    output: str | Path | None = None,
    options: BatchOptions | None = None,
    *,
    executor: Executor | None = None,
    progress: Progress = lambda outcome, done, total: None,
) -> Summary:
    """Fold many models, each in a child process of its own, and record what became of each in the output folder.

    Args:
        inputs: folders, files or patterns; see :func:`onnxrep.batch.discover.find`.
        output: the folder for the results, or its URL, where the inputs' trees are mirrored; None only for a dry run.
        options: see :class:`~onnxrep.batch.records.BatchOptions`.
        executor: where the supervisors run, which start the children and wait for them; threads if None. Wherever an
            executor runs them, onnxrep must be installed and the same files must be there. How many run at a time is
            the executor's affair: ``options.jobs`` has no meaning, ``options.memory`` is what one model may take (0 for
            half of what the machine has that runs it), and a model gets one thread if it is told nothing.
        progress: see :data:`Progress`.

    Raises:
        UsageError: an input is missing, no model is found, results would collide, or the provider is not there.
        OutputError: the output folder cannot be written, or another run works on it.
        KeyboardInterrupt: the run was interrupted; children are ended, and what was done is recorded.

    """
    options = options or BatchOptions()
    root = None if options.dry_run or output is None else _root(str(output))
    if root is None and not options.dry_run:
        raise UsageError("no output folder was named")
    jobs = find([str(i) for i in inputs], root, options.include, options.exclude)
    if not jobs:
        raise UsageError("no model was found, or none that --include and --exclude leave")
    with contextlib.ExitStack() as stack:
        book, previous = _book(root, jobs, stack)
        run = _Run(root, options, previous, executor)
        stack.callback(run.close)
        run.check(jobs)
        outcomes: list[Outcome] = []

        def note(record: Record) -> None:
            outcome = _outcome(record, previous)
            if book is not None and not outcome.resumed:
                book.append(record)
            outcomes.append(outcome)
            progress(outcome, len(outcomes), len(jobs))

        try:
            for record in run.records(jobs):
                note(record)
        except KeyboardInterrupt:
            for record in run.end():
                note(record)
            raise
        run.clean(jobs, outcomes)
    allowed = GOOD | {"unverified"} if options.allow_unverified else GOOD
    return Summary(tuple(sorted(outcomes, key=lambda o: o.model)), allowed)


def _root(output: str) -> str:
    """Return the absolute path of the output folder, or its URL."""
    return output.rstrip("/") if remote.is_url(output) else str(Path(output).absolute())


def _book(
    root: str | None, jobs: Sequence[Job], stack: contextlib.ExitStack
) -> tuple[Journal | remote.Records | None, dict[str, Record]]:
    """Open the records of an output folder, which is made and locked; return them and the newest of each model.

    In object storage there are no locks. Two runs on one folder do the same work twice; what they write is the same.

    Raises:
        UsageError: a result would take the place of a file that no batch made.
        OutputError: the folder cannot be written, or another run works on it.

    """
    if root is None:
        return None, {}
    if remote.is_url(root):
        records = remote.Records(root)
        return records, records.newest()
    folder = Path(root)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{root}: cannot be made ({error.strerror})") from None
    stack.enter_context(locked(folder))
    if (folder / LOCK.upper()).exists():
        _check_spelling(jobs)
    if not (folder / journal.NAME).exists():
        places = (
            folder / job.model for job in jobs if not job.fault
        )  # what is no plain file is refused model by model
        taken = next((place for place in places if place.is_file() and not place.is_symlink()), None)
        if taken is not None:
            raise UsageError(f"{printable(str(taken))}: is there, and no batch made it; choose another folder")
    previous = journal.newest(folder / journal.NAME)
    return stack.enter_context(Journal(folder / journal.NAME)), previous


def _check_spelling(jobs: Sequence[Job]) -> None:
    """Check that results have places of their own in a folder that takes names for the same whatever their case.

    Raises:
        UsageError: two have not.

    """
    seen: dict[str, Job] = {}
    for job in jobs:
        name = unicodedata.normalize("NFC", job.model).casefold()
        if seen.setdefault(name, job) is not job:
            both = f"{printable(seen[name].source)} and {printable(job.source)}"
            raise UsageError(
                f"{both} have the same place in the output folder, which does not tell case; run them apart"
            )


def _outcome(record: Record, previous: Mapping[str, Record]) -> Outcome:
    """Return what a record says; a model that was left as it is keeps what its former record says."""
    resumed = record["status"] == "resumed"
    told = previous[record["model"]] if resumed else record
    return Outcome(record["model"], told["status"], told["reason"], told["folds"], record["seconds"], resumed)


@dataclass(frozen=True)
class _Ticket:
    """A job with the bytes that are kept free for it."""

    job: Job
    share: float
    told: bool = False
    """Whether a child has said already that it needs more."""


class _Run:
    """The models of one batch on their way.

    What a model is admitted with is also its child's limit, so all children together stay within the memory allowed. A
    model that dies of a limit smaller than the whole is tried once more at the end, alone, with all of it: what becomes
    of it does not depend on how many ran beside it.
    """

    def __init__(
        self, root: str | None, options: BatchOptions, previous: Mapping[str, Record], executor: Executor | None
    ) -> None:
        self._root, self._options, self._previous = root, options, previous
        self._name = uuid.uuid4().hex  # by which supervisors know whose children they are asked to end
        self._local = executor is None
        self._memory = options.memory or (machine.share() if self._local else 0)
        self._workers = options.jobs or machine.cores()
        self._threads = options.threads or (max(machine.cores() // self._workers, 1) if self._local else 1)
        self._executor = executor or ThreadPoolExecutor(self._workers)
        self._running: dict[Future[str], _Ticket] = {}
        self._finished: queue.SimpleQueue[Future[str]] = queue.SimpleQueue()

    def check(self, jobs: Iterable[Job]) -> None:
        """Check what all models need, where models will run, and remove what dead runs left there.

        Raises:
            UsageError: the provider or the inputs are not there.
            OnnxrepError: the check itself failed, as it would for every model.

        """
        task = self._check(jobs, {} if self._root is not None else {"verify": False})
        try:
            answer = json.loads(supervise.run(task) if self._local else self._submitted(task).result())
        except Exception as error:  # noqa: BLE001  see _result
            raise OnnxrepError(f"the executor cannot run onnxrep: {type(error).__name__}: {error}") from None
        if answer["status"] != "ready":
            raise (UsageError if answer.get("usage") else OnnxrepError)(answer.get("reason", answer["status"]))

    def clean(self, jobs: Iterable[Job], outcomes: Iterable[Outcome]) -> None:
        """Remove what children left that were ended; on other machines, that some were may have passed unnoticed."""
        if not self._local or any(outcome.status in _DIED for outcome in outcomes):
            self._everywhere(supervise.run, self._check(jobs, {"verify": False}))

    def _check(self, jobs: Iterable[Job], changes: Mapping[str, Any]) -> str:
        """Return the task that checks options and cleans folders."""
        local = self._root is not None and not remote.is_url(self._root)
        places = {Path(self._root or "", job.model).parent for job in jobs if local and not job.fault}
        folders = sorted(str(place) for place in places if place.is_dir())
        task = self._common("check", self._memory) | {"model": "", "folders": folders}
        return json.dumps(task | {"options": self._options.for_model() | dict(changes)})

    def _submitted(self, task: str) -> Future[str]:
        """Give a task to the executor; one that is broken already loses it."""
        try:
            return self._executor.submit(supervise.run, task)
        except Exception as error:  # noqa: BLE001  see _result
            lost: Future[str] = Future()
            lost.set_exception(error)
            return lost

    def _everywhere(self, function: Callable[[str], Any], argument: str) -> None:
        """Call a function in this process, and on all workers where the executor can reach them out of turn."""
        function(argument)
        if isinstance(self._executor, cluster.Cluster):
            with contextlib.suppress(Exception):  # the cluster may be gone
                self._executor.everywhere(function, argument)

    def records(self, jobs: Sequence[Job]) -> Iterator[Record]:
        """Yield the record of each model as it is done."""
        yield from (_empty(job) | {"reason": one_line(job.fault)} for job in jobs if job.fault)
        waiting = deque(_Ticket(job, self._share(job)) for job in jobs if not job.fault)
        while waiting or self._running:
            while waiting and self._admits(waiting[0]):
                self._submit(waiting.popleft())
            future = self._next()
            ticket = self._running.pop(future)
            record = _result(future, ticket)
            if record["status"] == LARGER:
                waiting.append(replace(ticket, share=min(max(record["needs"], ticket.share), self._memory), told=True))
            elif record["status"] in ("oom", "crashed") and self._local and ticket.share < self._memory:
                waiting.append(replace(ticket, share=self._memory))
            else:
                yield record

    def _next(self) -> Future[str]:
        """Wait for a model that is done; look up now and then, for an interrupt that another thread received."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._finished.get(timeout=_LOOK)

    def end(self) -> Iterator[Record]:
        """End all children; yield the records of models that were done all the same."""
        for future in self._running:
            future.cancel()
        self._everywhere(supervise.stop, self._name)
        if self._local:
            self._executor.shutdown()
        for future, ticket in self._running.items():
            if future.done() and not future.cancelled():
                record = _result(future, ticket)
                if record["status"] != supervise.INTERRUPTED:
                    yield record
        self._running.clear()

    def _share(self, job: Job) -> float:
        """Return the bytes that a model gets: an equal share, or more where its files ask for it."""
        if not self._local:
            return self._memory
        return min(self._memory, max(self._memory / self._workers, expected(job.size)))

    def _admits(self, ticket: _Ticket) -> bool:
        """Whether a model can start now; those whose results may share a file go one after the other."""
        if any(t.job.group == ticket.job.group for t in self._running.values()):
            return False
        if not self._local or not self._running:
            return True
        reserved = sum(t.share for t in self._running.values())
        return len(self._running) < self._workers and reserved + ticket.share <= self._memory

    def _submit(self, ticket: _Ticket) -> None:
        """Give a model to the executor."""
        previous = self._previous.get(ticket.job.model)
        if previous is not None and self._options.retry_failed and previous["status"] not in GOOD:
            previous = None
        task = self._common("run", ticket.share)
        task |= {"model": ticket.job.model, "source": ticket.job.source, "previous": previous}
        task["most"] = self._memory if self._local and not ticket.told else 0
        future = self._submitted(json.dumps(task))
        self._running[future] = ticket
        future.add_done_callback(self._finished.put)

    def _common(self, kind: str, share: float) -> dict[str, Any]:
        """Return what all tasks hold."""
        return {
            "kind": kind,
            "run": self._name,
            "version": __version__,
            "root": self._root,
            "options": self._options.for_model(),
            "timeout": self._options.timeout,
            "threads": self._threads,
            "memory": share,
        }

    def close(self) -> None:
        """End what this run started; children that still run are ended, and their models are not recorded."""
        deque(self.end(), maxlen=0)
        self._everywhere(supervise.close, self._name)


def _empty(job: Job) -> Record:
    """Return a record with every field that one has."""
    empty: Record = {"model": job.model, "status": "error", "reason": "", "key": "", "input_sha256": ""}
    empty |= {"output": "", "written": {}, "folds": 0, "lacking": [], "versions": {}, "options": {}, "report": None}
    return empty | {"host": "", "seconds": 0.0, "peak": None, "exit": None, "signal": ""}


def _result(future: Future[str], ticket: _Ticket) -> Record:
    """Return the record of a model whose supervisor is done."""
    empty = _empty(ticket.job)
    try:
        found: Record = json.loads(future.result())
    except Exception as error:  # noqa: BLE001  an executor that loses its worker raises what it likes
        status = "crashed" if type(error).__name__ == cluster.LOST else "error"
        reason = one_line(f"the executor lost it: {type(error).__name__}: {error}")
        return empty | {"status": status, "reason": reason}
    return empty | found
