"""A batch as a whole: faulty files hurt nobody, nothing is done twice, and no kill leaves anything half done."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from rich.console import Console

from models import faulty
from models.net import Net
from onnxrep import BatchOptions, Options, machine, pipeline, run_batch
from onnxrep import files as files_of_models
from onnxrep.batch import child, display, journal, lock, supervise
from onnxrep.batch.records import FINAL, Outcome, expected
from onnxrep.errors import OutputError, UsageError
from onnxrep.proof import original
from onnxrep.proof.sessions import Runtime
from tests.processes import Started, files
from tests.test_batch_files import refuse
from tests.test_cli import call

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits as POSIX has them")

LIMIT = 10.0
OPTIONS = BatchOptions(jobs=2, threads=1, timeout=LIMIT)


def block(seed=0, channels=4, **settings):
    net = Net(seed, **settings)
    x = net.input((1, channels, 8, 8))
    return net.model(net.relu(net.add(net.conv_bn(x, channels, 3), net.conv_bn(x, channels, 1), net.bn(x))))


def zoo(folder: Path, count=6) -> Path:
    """Some small models that fold."""
    (folder / "deep er").mkdir(parents=True)
    for seed in range(count):
        onnx.save(block(seed), folder / ("deep er" if seed % 2 else "") / f"模型 {seed}.onnx")
    return folder


def slow(path: Path) -> None:
    """A model that never ends."""
    faulty.FAULTS[-1].write(path, 0)


def records(out: Path) -> list[dict]:
    return list(journal.read(out / journal.NAME))


def statuses(summary) -> dict[str, str]:
    return {o.model: o.status for o in summary.outcomes}


# -- faulty files -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faulted(tmp_path_factory):
    """A zoo with every kind of fault in it, its run, and what was expected."""
    root = tmp_path_factory.mktemp("zoo")
    expected = faulty.write(root / "in", models=45, faulty=len(faulty.FAULTS))
    summary = run_batch([root / "in"], root / "out", OPTIONS)
    return root, expected, summary


def test_every_model_has_its_status(faulted):
    _, expected, summary = faulted
    assert {status["status"] for status in expected.values()} >= {"oom", "crashed", "timeout", "error", "unverified"}
    assert statuses(summary) == {model: what["status"] for model, what in expected.items()}
    assert not summary.ok
    assert {o.model for o in summary.failures} == {
        m for m, what in expected.items() if what["status"] not in ("folded", "unchanged")
    }


def test_sound_models_are_whole_and_others_absent(faulted):
    root, expected, _ = faulted
    good = {model for model, what in expected.items() if what["status"] in ("folded", "unchanged")}
    assert set(files(root / "out")) == good
    for model in good:
        before, after = (root / "in" / model).read_bytes(), (root / "out" / model).read_bytes()
        assert (before == after) == (expected[model]["status"] == "unchanged")
        if expected[model]["status"] == "folded":
            Runtime(threads=1).session(after, "off")


def test_records_hold_everything(faulted):
    root, expected, _ = faulted
    found = records(root / "out")
    assert {r["model"] for r in found} == set(expected)
    assert len(found) == len(expected)
    for record in found:
        assert not record["lacking"]
        assert record["seconds"] > 0
        if record["status"] == "folded":
            assert record["written"] == {record["model"]: files(root / "out")[record["model"]]}
            assert record["report"]["folds"]
            assert record["report"]["verification"]["verdict"] == "verified"
            assert record["input_sha256"] == files(root / "in")[record["model"]]
            assert record["peak"] > 1 << 20
            assert record["versions"] == pipeline.versions()
        elif record["status"] == "crashed":
            assert (record["signal"], record["exit"]) == ("SIGABRT", None)
            assert "SIGABRT" in record["reason"]
        elif record["status"] != "unchanged":
            assert record["reason"]
            assert "\n" not in record["reason"]


def test_a_second_run_does_only_what_may_end_otherwise(faulted):
    root, expected, first = faulted
    before, known = len(records(root / "out")), files(root / "out")
    endless = [m for m, what in expected.items() if what["status"] == "timeout"]
    again = run_batch([root / "in"], root / "out", replace(OPTIONS, exclude=tuple(endless)))
    assert statuses(again) == {m: s for m, s in statuses(first).items() if m not in endless}
    assert files(root / "out") == known
    done = {r["model"] for r in records(root / "out")[before:]}
    unreadable = {m for m, what in expected.items() if what["status"] == "invalid"}
    large = {r["model"] for r in records(root / "out") if original.NEEDS in r["reason"]}
    assert {m for m in done if statuses(first)[m] in FINAL} <= unreadable | large
    assert {m for m, s in statuses(first).items() if s not in FINAL} - set(endless) <= done
    final = [o for o in again.outcomes if o.status in ("folded", "unchanged", "unverified", "unsupported")]
    assert all(o.resumed for o in final if o.model not in large)


# -- resuming -------------------------------------------------------------------------------------------------------


def done_again(root: Path, options=OPTIONS) -> set[str]:
    """Run a batch once more; the models on which work was done."""
    before = len(records(root / "out"))
    summary = run_batch([root / "in"], root / "out", options)
    found = {r["model"] for r in records(root / "out")[before:]}
    assert found == {o.model for o in summary.outcomes if not o.resumed}
    return found


def test_what_counts_as_done(tmp_path):
    zoo(tmp_path / "in", 3)
    net = Net(9)
    x = net.input((1, 4, 8, 8))
    y = net.conv(net.relu(net.add(net.conv_bn(x, 4, 3), net.bn(x))), 4, 3)  # the last weight stays as it is
    onnx.save_model(
        net.model(y), tmp_path / "in/ext.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    every = {"ext.onnx", "模型 0.onnx", "deep er/模型 1.onnx", "模型 2.onnx"}
    run_batch([tmp_path / "in"], tmp_path / "out", OPTIONS)
    known = files(tmp_path / "out")
    assert len(known) == 5  # the external weights have a file of their own
    assert not done_again(tmp_path)
    (tmp_path / "out/模型 0.onnx").unlink()
    assert done_again(tmp_path) == {"模型 0.onnx"}
    (tmp_path / "out/模型 2.onnx").write_bytes(b"spoiled")
    assert done_again(tmp_path) == {"模型 2.onnx"}
    next((tmp_path / "out").glob("ext.*.data")).unlink()
    assert done_again(tmp_path) == {"ext.onnx"}
    assert files(tmp_path / "out") == known
    onnx.save(block(5), tmp_path / "in/模型 0.onnx")
    assert done_again(tmp_path) == {"模型 0.onnx"}
    data = bytearray((tmp_path / "in/w.bin").read_bytes())
    data[3] ^= 1  # another exponent; the model's own bytes stay the same
    (tmp_path / "in/w.bin").write_bytes(data)
    assert done_again(tmp_path) == {"ext.onnx"}
    assert done_again(tmp_path, replace(OPTIONS, verify=False)) == every
    assert done_again(tmp_path, replace(OPTIONS, verify=False, jobs=1, timeout=99)) == set()


def test_failures_are_tried_again_if_that_is_wanted(tmp_path):
    zoo(tmp_path / "in", 1)
    faulty.FAULTS[23].write(tmp_path / "in/bad.onnx", 0)
    assert faulty.FAULTS[23].status == "unsupported"
    run_batch([tmp_path / "in"], tmp_path / "out", OPTIONS)
    assert not done_again(tmp_path)
    assert done_again(tmp_path, replace(OPTIONS, retry_failed=True)) == {"bad.onnx"}


def test_a_failure_says_that_an_older_result_lies_there(tmp_path):
    zoo(tmp_path / "in", 1)
    run_batch([tmp_path / "in"], tmp_path / "out", OPTIONS)
    (tmp_path / "in/模型 0.onnx").unlink()
    next(f for f in faulty.FAULTS if f.name == "custom op").write(tmp_path / "in/模型 0.onnx", 0)
    (outcome,) = run_batch([tmp_path / "in"], tmp_path / "out", OPTIONS).outcomes
    assert outcome.status == "unverified"
    assert "is not from this run" in outcome.reason
    (tmp_path / "in/模型 0.onnx").write_bytes(b"garbage")
    (outcome,) = run_batch([tmp_path / "in"], tmp_path / "out", OPTIONS).outcomes
    assert outcome.status == "invalid"
    assert "is not from this run" in outcome.reason


def test_results_do_not_depend_on_the_number_of_workers(tmp_path):
    zoo(tmp_path / "in")
    for name, jobs in (("one", 1), ("three", 3)):
        assert run_batch([tmp_path / "in"], tmp_path / name, replace(OPTIONS, jobs=jobs)).ok
    assert files(tmp_path / "one") == files(tmp_path / "three")


def test_a_dry_run_writes_nothing(tmp_path):
    zoo(tmp_path / "in", 2)
    before = files(tmp_path)
    summary = run_batch([tmp_path / "in"], tmp_path / "out", replace(OPTIONS, dry_run=True))
    assert summary.counts == {"folded": 2}
    assert [o.folds for o in summary.outcomes] == [1, 1]
    assert files(tmp_path) == before
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="no output folder"):
        run_batch([tmp_path / "in"])


# -- what the child finds -------------------------------------------------------------------------------------------


def task(root: Path, **changes):
    options = BatchOptions(**changes).for_model()
    given = {
        "kind": "run",
        "model": "m.onnx",
        "source": str(root / "m.onnx"),
        "root": str(root / "out"),
        "previous": None,
    }
    return given | {"options": options, "timeout": LIMIT, "threads": 1, "memory": 4 << 30, "lacking": []}


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [(ZeroDivisionError("by zero"), "error", "ZeroDivisionError: by zero"), (MemoryError(), "oom", "out of memory")],
)
def test_bugs_and_want_of_memory_are_recorded(tmp_path, monkeypatch, error, status, reason):
    onnx.save(block(), tmp_path / "m.onnx")

    def fail(*arguments):
        raise error

    monkeypatch.setattr(pipeline, "optimize", fail)
    monkeypatch.setattr(child, "_limit", lambda name, value: True)  # this process must keep its own
    record = child.run(task(tmp_path))
    assert (record["status"], record["reason"]) == (status, reason)
    assert record["key"]


def test_an_input_that_is_replaced_meanwhile(tmp_path, monkeypatch):
    """The record is of the bytes that were read, so the next run sees that the model is another one."""
    onnx.save(block(), tmp_path / "m.onnx")
    first = (tmp_path / "m.onnx").read_bytes()
    real = files_of_models.read

    def replaced(*arguments):
        result = real(*arguments)
        onnx.save(block(7), tmp_path / "m.onnx")
        return result

    monkeypatch.setattr(files_of_models, "read", replaced)
    monkeypatch.setattr(child, "_limit", lambda name, value: True)
    record = child.run(task(tmp_path))
    assert record["status"] == "folded"
    assert record["input_sha256"] == record["report"]["input_sha256"] == hashlib.sha256(first).hexdigest()
    assert child.run({**task(tmp_path), "previous": record})["status"] == "folded"


def test_data_that_is_replaced_meanwhile(tmp_path, monkeypatch):
    onnx.save(block(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    real = pipeline.fold

    def replaced(*arguments):
        result = real(*arguments)
        (tmp_path / "m.data").write_bytes((tmp_path / "m.data").read_bytes())
        return result

    monkeypatch.setattr(pipeline, "fold", replaced)
    monkeypatch.setattr(child, "_limit", lambda name, value: True)
    record = child.run(task(tmp_path))
    assert record["status"] == "error"
    assert "changed" in record["reason"]
    assert not record["written"]


def test_files_that_no_batch_made_are_not_replaced(tmp_path):
    zoo(tmp_path / "in/sub", 2)
    mine = tmp_path / "in/模型 0.onnx"
    mine.write_bytes(b"precious")
    with pytest.raises(UsageError, match="no batch made it"):
        run_batch([tmp_path / "in/sub"], tmp_path / "in", OPTIONS)
    assert mine.read_bytes() == b"precious"


def test_a_pattern_that_leads_outside(tmp_path):
    (tmp_path / "in/a").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    onnx.save(block(), tmp_path / "secret/m.onnx")
    with pytest.raises(UsageError, match="no place in the output folder"):
        run_batch([str(tmp_path / "in/*/../../secret/*.onnx")], tmp_path / "out")


def test_results_behind_links(tmp_path):
    zoo(tmp_path / "in", 2)
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    options = replace(OPTIONS, follow_symlinks=True, external_data=True)
    assert run_batch([tmp_path / "in"], tmp_path / "out", options).counts == {"folded": 2}
    model = sorted((tmp_path / "real").glob("*.onnx"))[0]
    model.rename(tmp_path / "elsewhere.onnx")
    model.symlink_to(tmp_path / "elsewhere.onnx")
    again = run_batch([tmp_path / "in"], tmp_path / "out", options)
    assert [o.resumed for o in again.outcomes] == [True, True]


def test_a_place_that_is_taken(tmp_path):
    zoo(tmp_path / "in", 3)
    (tmp_path / "out/模型 0.onnx").mkdir(parents=True)
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "out/模型 2.onnx").symlink_to(tmp_path / "precious")
    summary = run_batch([tmp_path / "in"], tmp_path / "out", OPTIONS)
    assert statuses(summary) == {"deep er/模型 1.onnx": "folded", "模型 0.onnx": "error", "模型 2.onnx": "error"}
    assert "is a folder" in summary.failures[0].reason
    assert "symbolic link" in summary.failures[1].reason
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_without_fork_each_model_has_a_process_of_its_own(tmp_path, monkeypatch):
    zoo(tmp_path / "in", 2)
    faulty.FAULTS[-2].write(tmp_path / "in/bad.onnx", 0)
    monkeypatch.delattr(os, "fork")
    summary = run_batch([tmp_path / "in"], tmp_path / "out", OPTIONS)
    assert summary.counts == {"folded": 2, "crashed": 1}
    assert summary.failures[0].reason.startswith("SIGABRT")


def test_a_folder_that_cannot_be_searched_does_not_end_the_batch(tmp_path, monkeypatch):
    zoo(tmp_path / "in", 2)
    refuse(monkeypatch, tmp_path / "in/deep er")
    summary = run_batch([tmp_path / "in"], tmp_path / "out", OPTIONS)
    assert statuses(summary) == {"deep er/": "error", "模型 0.onnx": "folded"}
    assert not summary.ok
    assert "Permission denied" in summary.failures[0].reason
    assert set(records(tmp_path / "out")[0]) >= {"lacking", "report", "seconds", "versions"}


def test_models_that_share_a_data_file_run_one_after_the_other(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for name in ("m.onnx", "m.ONNX", "n.onnx"):
        onnx.save(block(), tmp_path / "in" / name)
    running, most = [], []
    real = supervise.run

    def run(task):
        model = json.loads(task)["model"]
        running.append(model)
        most.append([name for name in running if name.lower() == "m.onnx"])
        result = real(task)
        running.remove(model)
        return result

    monkeypatch.setattr(supervise, "run", run)
    options = replace(OPTIONS, jobs=3, external_data=True)
    assert run_batch([tmp_path / "in"], tmp_path / "out", options).counts == {"folded": 3}
    assert max(map(len, most)) == 1


def test_data_that_the_batch_did_not_see_is_admitted_with_more_memory(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    onnx.save_model(
        block(channels=64), tmp_path / "in/m.onnx", save_as_external_data=True, location="w.weights", size_threshold=0
    )
    given = []
    real = supervise.run
    monkeypatch.setattr(supervise, "run", lambda task: given.append(json.loads(task)) or real(task))
    size = (tmp_path / "in/w.weights").stat().st_size
    memory = 2 * expected(size // 2)
    summary = run_batch([tmp_path / "in"], tmp_path / "out", replace(OPTIONS, memory=memory, verify=False))
    shares = [task["memory"] for task in given if task["kind"] == "run"]
    assert summary.counts == {"folded": 1}
    assert shares[0] == memory / 2 < expected(size) <= shares[1] <= memory
    assert [r["status"] for r in records(tmp_path / "out")] == ["folded"]


def test_memory_is_watched_where_the_address_space_has_no_limit(tmp_path, monkeypatch):
    """With the CPU standing in for the device."""
    (tmp_path / "in").mkdir()
    slow(tmp_path / "in/m.onnx")
    monkeypatch.setattr(supervise, "_most", lambda task: 1.0)
    (outcome,) = run_batch([tmp_path / "in"], tmp_path / "out", OPTIONS).outcomes
    assert (outcome.status, "bytes allowed" in outcome.reason) == ("oom", True)
    onnx.save(block(), tmp_path / "in/m.onnx")
    monkeypatch.setattr(supervise, "_most", lambda task: 4.0 * 2**30)
    assert run_batch([tmp_path / "in"], tmp_path / "out", OPTIONS).ok
    assert records(tmp_path / "out")[-1]["lacking"] == []
    monkeypatch.setattr(machine, "resident", lambda process: None)
    assert run_batch([tmp_path / "in"], tmp_path / "other", OPTIONS).ok
    assert records(tmp_path / "other")[-1]["lacking"] == [supervise.WATCH]


def test_the_key_holds_the_device(tmp_path, monkeypatch):
    onnx.save(block(), tmp_path / "m.onnx")
    source = files_of_models.read(tmp_path / "m.onnx", False)
    keys = []
    for provider in ("cpu", "cuda"):
        for name in ("one card", "another"):
            monkeypatch.setattr(child.machine, "device_name", lambda name=name: name)
            keys.append(child._key(source, Options(provider=provider)))
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA is there")
def test_a_provider_that_is_not_there_ends_the_batch(capsys, tmp_path):
    zoo(tmp_path / "in", 1)
    code, _, err = call(capsys, "batch", tmp_path / "in", "-o", tmp_path / "out", "--provider", "cuda")
    assert code == 2
    assert "provider 'cuda' was asked for" in err
    assert not records(tmp_path / "out")


# -- killing --------------------------------------------------------------------------------------------------------


def with_slow_ones(root: Path, count=2) -> None:
    zoo(root / "in")
    for number in range(count):
        slow(root / f"in/模型 z{number}.onnx")  # these come last


def test_interrupted(tmp_path):
    with_slow_ones(tmp_path)
    with Started(tmp_path / "in", tmp_path / "out", "--jobs", "2") as run:
        run.until(lambda: len(records(tmp_path / "out")) == 6)  # two remain that never end
        run.process.send_signal(signal.SIGINT)
        _, err = run.process.communicate(timeout=20)
    assert run.process.returncode == 130
    assert err.splitlines()[-1] == "onnxrep: interrupted"
    assert run.gone()
    assert len(records(tmp_path / "out")) == 6
    for path in (tmp_path / "in").glob("*z*"):
        path.unlink()
    assert not done_again(tmp_path)


def test_an_interrupt_that_another_thread_received(tmp_path):
    """The system gives a signal to any thread; the main one, which waits, must look up by itself."""
    zoo(tmp_path / "in", 1)
    late, over = [], threading.Event()

    class Interrupted(ThreadPoolExecutor):
        def submit(self, function, task):
            return super().submit(function if json.loads(task)["kind"] == "check" else self.interrupt, task)

        def interrupt(self, task):
            over.wait(0.5)  # the main thread waits by now
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
            late.append(not over.wait(LIMIT))
            return json.dumps({"status": "error"})

    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Interrupted(1) as executor:
            with pytest.raises(KeyboardInterrupt):
                run_batch([tmp_path / "in"], tmp_path / "out", OPTIONS, executor=executor)
            over.set()
    finally:
        signal.signal(signal.SIGINT, old)
    assert late == [False]


def test_nobody_outlives_a_killed_parent(tmp_path):
    with_slow_ones(tmp_path)
    with Started(tmp_path / "in", tmp_path / "out", "--jobs", "2") as run:
        run.until(lambda: len(records(tmp_path / "out")) >= 3)
    assert run.gone()
    for path in (tmp_path / "in").glob("*z*"):
        path.unlink()
    (tmp_path / f"out/.onnxrep-{os.uname().nodename}-999999999-0").write_bytes(b"half a mod")
    done = {r["model"] for r in records(tmp_path / "out")}
    every = {p.relative_to(tmp_path / "in").as_posix() for p in (tmp_path / "in").rglob("*.onnx")}
    assert done_again(tmp_path) == every - done
    run_batch([tmp_path / "in"], tmp_path / "fresh", OPTIONS)
    assert files(tmp_path / "out") == files(tmp_path / "fresh")


@pytest.mark.parametrize("victim", ["server", "child"])
def test_a_killed_helper_loses_no_model(tmp_path, monkeypatch, victim):
    """The first attempt is given a model that never ends, and its server or child is killed meanwhile."""
    slow(tmp_path / "endless.onnx")
    onnx.save(block(), tmp_path / "a.onnx")
    attempts = []
    real = supervise.Server.do

    def do(self, given):
        if given["kind"] != "run":
            return real(self, given)
        attempts.append(given["memory"])
        if len(attempts) > 1:
            return real(self, given)

        def kill():
            os.kill(self._process.pid if victim == "server" else self._child, signal.SIGKILL)

        threading.Timer(1.0, kill).start()
        return real(self, given | {"source": str(tmp_path / "endless.onnx")})

    monkeypatch.setattr(supervise.Server, "do", do)
    summary = run_batch([tmp_path / "a.onnx"], tmp_path / "out", replace(OPTIONS, memory=float(8 << 30)))
    assert summary.counts == {"folded": 1}
    # A server's death is no fault of the model; a killed child looks like one that ran out of its share.
    assert attempts == ([4 << 30, 4 << 30] if victim == "server" else [4 << 30, 8 << 30])


def test_two_runs_on_one_folder(tmp_path):
    zoo(tmp_path / "in", 1)
    (tmp_path / "out").mkdir()
    words = f"another batch works on this folder .process {os.getpid()} on"
    with lock.locked(tmp_path / "out"), pytest.raises(OutputError, match=words):
        run_batch([tmp_path / "in"], tmp_path / "out", OPTIONS)
    assert run_batch([tmp_path / "in"], tmp_path / "out", OPTIONS).ok


# -- executors ------------------------------------------------------------------------------------------------------


def test_any_executor_will_do(tmp_path):
    zoo(tmp_path / "in", 3)
    with ThreadPoolExecutor(2) as executor:
        assert run_batch([tmp_path / "in"], tmp_path / "out", OPTIONS, executor=executor).counts == {"folded": 3}
    run_batch([tmp_path / "in"], tmp_path / "local", OPTIONS)
    assert files(tmp_path / "out") == files(tmp_path / "local")


class Lossy(Executor):
    """An executor that loses every second task, after the first."""

    count = 0

    def submit(self, function, /, *arguments, **named):
        future = Future()
        self.count += 1
        if self.count % 2 == 0:
            future.set_exception(RuntimeError("worker died"))
        else:
            future.set_result(function(*arguments))
        return future


def test_an_executor_that_loses_tasks(tmp_path):
    zoo(tmp_path / "in", 4)
    summary = run_batch([tmp_path / "in"], tmp_path / "out", OPTIONS, executor=Lossy())
    assert summary.counts == {"folded": 2, "error": 2}
    assert summary.failures[0].reason == "the executor lost it: RuntimeError: worker died"
    assert run_batch([tmp_path / "in"], tmp_path / "out", OPTIONS).counts == {"folded": 4}


# -- the command ----------------------------------------------------------------------------------------------------


def test_the_parent_opens_no_model(tmp_path):
    zoo(tmp_path / "in", 1)
    code = (
        "import sys; from onnxrep.cli import main; "
        f"code = main(['batch', {str(tmp_path / 'in')!r}, '-o', {str(tmp_path / 'out')!r}]); "
        "loaded = {m.split('.')[0] for m in sys.modules}; "
        "print(code, sorted(loaded & {'onnx', 'onnxruntime', 'numpy', 'onnx_graphsurgeon', 'google'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_what_people_see(capsys, tmp_path):
    zoo(tmp_path / "in", 2)
    (tmp_path / "in/evil\x1b[31m.onnx").write_bytes(b"")
    code, out, err = call(capsys, "batch", tmp_path / "in", "-o", tmp_path / "out", "--jobs", "1")
    assert code == 1
    assert "\x1b" not in out + err
    lines = [line.split() for line in out.splitlines()]
    assert ["invalid", "evil\\x1b[31m.onnx", "empty", "file;"] in [line[:4] for line in lines]
    assert ["folded", "2"] in lines
    assert ["invalid", "1"] in lines
    assert ["all", "3"] in lines
    assert "2 regions folded" in out
    progress = err.splitlines()
    assert len(progress) == 3
    assert progress[0].startswith("[1/3] folded deep er/模型 1.onnx 1 fold, ")
    (tmp_path / "in/evil\x1b[31m.onnx").unlink()
    code, out, err = call(capsys, "batch", tmp_path / "in", "-o", tmp_path / "out", "--jobs", "1")
    assert code == 0
    assert "2 models were done in a former run" in out
    assert "folded (as before)" in err


def test_a_bar_for_people():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with display.Watch(console) as watch:
        watch.show(Outcome("a.onnx", "folded", "", 3, 0.1), 1, 2)
        watch.show(Outcome("b\x1b.onnx", "oom", "out of memory", 0, 0.1), 2, 2)
    text = console.file.getvalue()
    assert "2/2" in text
    assert "3 folds, 1 failed" in text
    assert "oom b\\x1b.onnx out of memory" in text
    assert "a.onnx" not in text


def test_wrong_usage(capsys, tmp_path):
    zoo(tmp_path / "in", 1)
    for arguments, words in (
        ([tmp_path / "in"], "name the folder for the results"),
        ([tmp_path / "nowhere", "-o", tmp_path / "out"], "no such file or folder"),
        ([tmp_path / "in", "-o", tmp_path / "in"], "is an input"),
        ([tmp_path / "in", "-o", tmp_path / "out", "--include", "b*"], "no model was found"),
        ([tmp_path / "in", "-o", tmp_path / "out", "--timeout", "0"], "is no number above zero"),
        ([tmp_path / "in", "-o", tmp_path / "out", "--input-data", tmp_path / "no.npz"], "no such file"),
    ):
        code, out, err = call(capsys, "batch", *arguments)
        assert code == 2
        assert words in err
        assert not out
    (tmp_path / "file").write_bytes(b"")
    code, _, err = call(capsys, "batch", tmp_path / "in", "-o", tmp_path / "file")
    assert code == 1
    assert "cannot be made" in err


def test_unverified_models_can_be_allowed(capsys, tmp_path):
    (tmp_path / "in").mkdir()
    next(f for f in faulty.FAULTS if f.name == "custom op").write(tmp_path / "in/m.onnx", 0)
    assert call(capsys, "batch", tmp_path / "in", "-o", tmp_path / "out")[0] == 1
    assert not files(tmp_path / "out")
    assert call(capsys, "batch", tmp_path / "in", "-o", tmp_path / "out", "--allow-unverified")[0] == 0
    assert set(files(tmp_path / "out")) == {"m.onnx"}


def test_what_one_model_can_be_told_all_of_them_can():
    timed = {"bench", "tune", "tune_cache"}  # times taken beside other models say nothing
    code = {"select"}  # a function cannot go to other processes
    assert {f.name for f in fields(Options)} - timed - code <= {f.name for f in fields(BatchOptions)}


def test_options_reach_the_model(tmp_path):
    net = Net(0)
    x = net.input(("n", 4, "h", "w"))
    (tmp_path / "in").mkdir()
    onnx.save(net.model(net.relu(net.add(net.conv_bn(x, 4, 3), net.conv_bn(x, 4, 1)))), tmp_path / "in/m.onnx")
    np.savez(tmp_path / "data.npz", x=np.ones((2, 4, 5, 5), np.float32))
    options = replace(OPTIONS, input_shapes={"x": (1, 4, 9, 9)}, input_data=tmp_path / "data.npz", external_data=True)
    options = replace(options, input_ranges={"x": (0.0, 255.0)})
    assert run_batch([tmp_path / "in"], tmp_path / "out", options).ok
    (record,) = records(tmp_path / "out")
    inputs = record["report"]["verification"]["inputs"]
    assert any("1x4x9x9" in i for i in inputs)
    assert {"data.npz", "range 1x4x9x9"} < set(inputs)
    assert record["options"]["input_shapes"] == {"x": [1, 4, 9, 9]}
    assert json.loads(json.dumps(record)) == record
    shutil.rmtree(tmp_path / "out")


def test_what_is_excluded_is_part_of_what_was_done(tmp_path):
    """Another choice of regions is another result, so the model is done again; the same choice stands."""
    (tmp_path / "in").mkdir()
    onnx.save(block(), tmp_path / "in/m.onnx")
    places, all_ = ([tmp_path / "in"], tmp_path / "out"), {"exclude_nodes": ("*",)}
    assert run_batch(*places, replace(OPTIONS, **all_)).counts == {"unchanged": 1}
    again = run_batch(*places, replace(OPTIONS, **all_))
    assert [o.resumed for o in again.outcomes] == [True]
    for changes in ({}, {"kinds": ("merge",)}, {"only_nodes": ("*",)}):
        found = run_batch(*places, replace(OPTIONS, **changes))
        assert [(o.status, o.resumed) for o in found.outcomes] == [("folded", False)]
