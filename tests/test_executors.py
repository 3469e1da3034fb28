"""A batch on other processes and on a cluster: the same records, and nothing is lost with a worker."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from distributed import KilledWorker

from onnxrep import run_batch
from onnxrep.batch import cluster, runner
from onnxrep.errors import OnnxrepError, UsageError
from tests.processes import Started, files
from tests.test_batch import OPTIONS, records, slow, statuses, zoo
from tests.test_cli import call

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits as POSIX has them")

LIMIT = "12"
CHANGING = ("host", "seconds", "peak", "report")
"""Fields of a record that no two runs have in common; of the report, the stages' times."""


def comparable(out: Path) -> list[dict]:
    """The records of a run without what no two runs have in common, by model."""
    found = []
    for record in records(out):
        report = record["report"] and {k: v for k, v in record["report"].items() if k != "seconds"}
        if report:
            report["written"] = [str(Path(w).relative_to(out)) for w in report["written"]]
            report["output"] = str(Path(report["output"]).relative_to(out)) if report["output"] else ""
        found.append({k: v for k, v in record.items() if k not in CHANGING} | {"report": report})
    return sorted(found, key=lambda r: r["model"])


def until(condition: Callable[[], object], limit: float = 60) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def long_at_work(above: psutil.Process) -> list[psutil.Process]:
    """Servers below a process whose child is at work for a while."""
    found = []
    for process in above.children(recursive=True):
        try:
            if "onnxrep.batch.server" in process.cmdline():
                found += [process for child in process.children() if time.time() - child.create_time() > 1.5]
        except psutil.Error:  # it ended meanwhile
            continue
    return found


# -- processes ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes(tmp_path, method):
    zoo(tmp_path / "in", 4)
    (tmp_path / "in/bad.onnx").write_bytes(b"no model")
    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as executor:
        first = run_batch([tmp_path / "in"], tmp_path / "out", OPTIONS, executor=executor)
        again = run_batch([tmp_path / "in"], tmp_path / "out", OPTIONS, executor=executor)
    run_batch([tmp_path / "in"], tmp_path / "local", OPTIONS)
    assert first.counts == again.counts == {"folded": 4, "invalid": 1}
    assert sum(outcome.resumed for outcome in again.outcomes) == 4
    assert files(tmp_path / "out") == files(tmp_path / "local")
    once = [r for r in comparable(tmp_path / "out") if r["status"] == "folded"]
    assert once == [r for r in comparable(tmp_path / "local") if r["status"] == "folded"]


def test_a_pool_that_breaks_loses_only_work(tmp_path):
    zoo(tmp_path / "in", 3)
    slow(tmp_path / "in/0.onnx")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        worker = psutil.Process(executor.submit(os.getpid).result())

        def kill():
            until(lambda: long_at_work(worker))
            worker.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        summary = run_batch([tmp_path / "in"], tmp_path / "out", OPTIONS, executor=executor)
        killer.join()
    assert all("the executor lost it: BrokenProcessPool" in o.reason for o in summary.failures)
    assert summary.counts == {"error": 4}
    (tmp_path / "in/0.onnx").unlink()
    assert run_batch([tmp_path / "in"], tmp_path / "out", OPTIONS).counts == {"folded": 3}


class Fixed(Executor):
    """An executor that answers every task after the first, which is the check, with an error."""

    def __init__(self, error: Exception) -> None:
        self.error, self.count = error, 0

    def submit(self, function, /, *arguments, **named):
        future = Future()
        self.count += 1
        if self.count > 1:
            future.set_exception(self.error)
        else:
            future.set_result(function(*arguments))
        return future


def test_a_model_that_dask_gives_up(tmp_path):
    zoo(tmp_path / "in", 1)
    lost = Fixed(KilledWorker("task", SimpleNamespace(address="tcp://10.0.0.2:1"), 3))
    (outcome,) = run_batch([tmp_path / "in"], tmp_path / "out", OPTIONS, executor=lost).outcomes
    assert outcome.status == "crashed"
    assert outcome.reason.startswith("the executor lost it: KilledWorker: ")


def test_workers_must_have_the_same_version(tmp_path, monkeypatch):
    zoo(tmp_path / "in", 1)
    monkeypatch.setattr(runner, "__version__", "0.0.0")
    with pytest.raises(OnnxrepError, match=r"is installed here, but 0\.0\.0 where the batch was started"):
        run_batch([tmp_path / "in"], tmp_path / "out", OPTIONS)
    assert not records(tmp_path / "out")


def test_an_executor_that_cannot_run_it(tmp_path):
    zoo(tmp_path / "in", 1)
    broken = Fixed(ModuleNotFoundError("No module named 'onnxrep'"))
    broken.count = 1
    with pytest.raises(OnnxrepError, match="cannot run onnxrep: ModuleNotFoundError: No module"):
        run_batch([tmp_path / "in"], tmp_path / "out", OPTIONS, executor=broken)


# -- a cluster ------------------------------------------------------------------------------------------------------


class Dask:
    """A scheduler and two workers, each under a nanny, on this machine."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "scheduler.log"
        self._all: list[psutil.Popen] = []
        self._start("scheduler", "--host", "127.0.0.1", "--port", "0")
        until(lambda: "Scheduler at:" in self._log.read_text())
        self.address = next(w for w in self._log.read_text().split() if w.startswith("tcp://127.0.0.1:"))
        for number in range(2):
            place = str(folder / f"worker{number}")
            self._start("worker", self.address, "--nthreads", "1", "--host", "127.0.0.1", "--local-directory", place)

    def _start(self, kind: str, *options: str) -> None:
        command = [sys.executable, "-m", "dask", kind, *options, "--no-dashboard"]
        with self._log.open("ab") as log:
            self._all.append(psutil.Popen(command, stdout=log, stderr=log))

    @property
    def scheduler(self) -> psutil.Popen:
        return self._all[0]

    @property
    def nannies(self) -> list[psutil.Popen]:
        return self._all[1:]

    def at_work(self) -> list[tuple[psutil.Popen, psutil.Process]]:
        """Each nanny with a server below it whose child has been at work for a while."""
        return [(n, server) for n in self.nannies if n.is_running() for server in long_at_work(n)]

    def end(self) -> None:
        for process in reversed(self._all):
            below = process.children(recursive=True) if process.is_running() else []
            for one in [process, *below]:
                if one.is_running():
                    one.kill()
            process.wait()


@pytest.fixture
def dask(tmp_path) -> Iterator[Dask]:
    started = Dask(tmp_path)
    yield started
    started.end()


def test_a_killed_worker_loses_no_model(tmp_path, dask):
    """A machine goes down that is at work, most likely on the endless model; the other does all that is left."""
    zoo(tmp_path / "in", 8)
    slow(tmp_path / "in/0.onnx")
    (tmp_path / "in/bad.onnx").write_bytes(b"no model")
    with Started(tmp_path / "in", tmp_path / "out", "--dask", dask.address, "--timeout", LIMIT) as run:
        at_work = []
        run.until(lambda: at_work.extend(dask.at_work()) or at_work)
        nanny, server = at_work[0]
        worker, children = server.parent(), server.children()
        nanny.kill()
        worker.kill()
        assert len(records(tmp_path / "out")) < 10
        _, err = run.process.communicate(timeout=120)
        assert run.process.returncode == 1, err
    until(lambda: not any(p.is_running() for p in (server, *children)), 10)
    run_batch([tmp_path / "in"], tmp_path / "local", replace(OPTIONS, timeout=float(LIMIT)))
    assert files(tmp_path / "out") == files(tmp_path / "local")
    assert comparable(tmp_path / "out") == comparable(tmp_path / "local")
    assert Counter(r["status"] for r in records(tmp_path / "out")) == {"folded": 8, "timeout": 1, "invalid": 1}


def test_interrupted_on_a_cluster(tmp_path, dask):
    zoo(tmp_path / "in", 3)
    slow(tmp_path / "in/0.onnx")
    with Started(tmp_path / "in", tmp_path / "out", "--dask", dask.address) as run:
        run.until(lambda: dask.at_work() and len(records(tmp_path / "out")) == 3)
        ((_, server),) = dask.at_work()
        run.process.send_signal(signal.SIGINT)
        _, err = run.process.communicate(timeout=30)
    assert run.process.returncode == 130
    assert err.splitlines()[-1] == "onnxrep: interrupted"
    until(lambda: not server.is_running(), 10)
    assert [record["status"] for record in records(tmp_path / "out")] == ["folded"] * 3
    with cluster.Cluster(dask.address) as executor:
        again = run_batch([tmp_path / "in"], tmp_path / "out", replace(OPTIONS, exclude=("0*",)), executor=executor)
    assert all(outcome.resumed for outcome in again.outcomes)
    assert set(statuses(again).values()) == {"folded"}
    until(lambda: not any("onnxrep.batch.server" in p.cmdline() for n in dask.nannies for p in n.children(True)), 10)


def test_a_scheduler_that_goes_away(tmp_path, dask):
    zoo(tmp_path / "in", 2)
    slow(tmp_path / "in/0.onnx")
    with Started(tmp_path / "in", tmp_path / "out", "--dask", dask.address) as run:
        run.until(lambda: dask.at_work() and len(records(tmp_path / "out")) == 2)
        dask.scheduler.kill()
        out, _ = run.process.communicate(timeout=120)
    assert run.process.returncode == 1
    assert "the executor lost it: ConnectionError: the connection to the scheduler was lost" in " ".join(out.split())
    assert Counter(record["status"] for record in records(tmp_path / "out")) == {"folded": 2, "error": 1}


def test_a_cluster_that_is_not_there(capsys, tmp_path, monkeypatch):
    zoo(tmp_path / "in", 1)
    monkeypatch.setattr(cluster, "_PATIENCE", 1)
    for address, words in (
        ("tcp://127.0.0.1:1", "tcp://127.0.0.1:1: no Dask scheduler answers"),
        ("127.0.0.1:1", "127.0.0.1:1: no Dask scheduler answers"),
    ):
        code, out, err = call(capsys, "batch", tmp_path / "in", "-o", tmp_path / "out", "--dask", address)
        assert (code, out) == (2, "")
        assert words in err
        assert len(err.splitlines()) == 1
    code, _, err = call(capsys, "batch", tmp_path / "in", "-o", tmp_path / "out", "--dask", address, "--jobs", "2")
    assert code == 2
    assert "--jobs is for this machine" in err


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"pip install 'onnxrep\[dask\]'"):
        cluster.Cluster("tcp://127.0.0.1:1")
