"""A batch in object storage: the same as on a disk, and what a model names never leaves its folder."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import fsspec
import onnx
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from models.net import Net
from onnxrep import machine, run_batch
from onnxrep.batch import discover, journal, remote
from onnxrep.errors import MissingInput, OutputError, UsageError
from tests.processes import files
from tests.test_batch import OPTIONS, block, statuses, zoo
from tests.test_cli import call
from tests.test_executors import CHANGING

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits as POSIX has them")

IN, OUT = "memory://bucket/in", "memory://bucket/out"


@pytest.fixture
def store():
    """The memory file system, empty before and after."""

    def empty():
        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]

    empty()
    yield fsspec.filesystem("memory")
    empty()


@pytest.fixture(autouse=True)
def staging(tmp_path, monkeypatch):
    """Where models are staged; nothing may stay there."""
    place = tmp_path / "staging"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    assert not list(place.glob("onnxrep-*"))


def with_data(path: Path, location="w/weights.bin", seed=9) -> None:
    """A model whose last weight, which stays as it is, lies in a file."""
    net = Net(seed)
    x = net.input((1, 4, 8, 8))
    model = net.model(net.conv(net.relu(net.add(net.conv_bn(x, 4, 3), net.bn(x))), 4, 3))
    (path.parent / location).parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(model, path, save_as_external_data=True, location=location, size_threshold=0)


def models(folder: Path) -> Path:
    zoo(folder, 3)
    with_data(folder / "deep er/ext.onnx")
    (folder / "bad.onnx").write_bytes(b"no model")
    (folder / "notes.txt").write_bytes(b"no model either")
    return folder


def upload(store, folder: Path, at="/bucket/in") -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            store.pipe_file(f"{at}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def objects(store, at="/bucket/out") -> dict[str, str]:
    """Relative path -> hash of all objects but the records."""
    found = {name.removeprefix(f"{at}/"): store.cat_file(name) for name in store.find(at)}
    return {n: hashlib.sha256(data).hexdigest() for n, data in found.items() if not n.startswith(".onnxrep/")}


def written(store, at="/bucket/out") -> dict[str, dict]:
    """Model -> record."""
    found = [json.loads(store.cat_file(name)) for name in store.find(f"{at}/.onnxrep")]
    return {record["model"]: record for record in found}


def plain(record: dict) -> dict:
    return {name: value for name, value in record.items() if name not in CHANGING}


def test_the_same_as_on_a_disk(tmp_path, store):
    upload(store, models(tmp_path / "in"))
    with ThreadPoolExecutor(2) as executor:
        summary = run_batch([IN], OUT, OPTIONS, executor=executor)
    local = run_batch([tmp_path / "in"], tmp_path / "out", OPTIONS)
    assert summary.counts == local.counts == {"folded": 4, "invalid": 1}
    assert statuses(summary) == statuses(local)
    assert objects(store) == files(tmp_path / "out")
    there, here = written(store), journal.newest(tmp_path / "out" / journal.NAME)
    assert {m: plain(r) for m, r in there.items()} == {m: plain(r) for m, r in here.items()}
    report = there["deep er/ext.onnx"]["report"]
    assert report["input"] == "memory:///bucket/in/deep er/ext.onnx"
    assert report["output"] == f"{OUT}/deep er/ext.onnx"
    assert report["written"][-1] == report["output"]
    assert len(report["written"]) == 2
    assert "staging" not in json.dumps(there)


@pytest.mark.parametrize(("source", "target"), [(IN, None), (None, OUT)])
def test_one_side_alone(tmp_path, store, source, target):
    upload(store, models(tmp_path / "in"))
    summary = run_batch([source or tmp_path / "in"], target or tmp_path / "out", OPTIONS)
    run_batch([tmp_path / "in"], tmp_path / "local", OPTIONS)
    assert summary.counts == {"folded": 4, "invalid": 1}
    assert (objects(store) if target else files(tmp_path / "out")) == files(tmp_path / "local")


def test_resuming(tmp_path, store):
    upload(store, models(tmp_path / "in"))

    def again(**changes) -> set[str]:
        summary = run_batch([IN], OUT, replace(OPTIONS, **changes))
        return {o.model for o in summary.outcomes if not o.resumed}

    every = again()
    assert len(every) == 5
    known = objects(store)
    assert again() == {"bad.onnx"}  # what is no model has no key
    store.rm_file("/bucket/out/模型 0.onnx")
    store.pipe_file("/bucket/out/模型 2.onnx", b"spoiled")
    assert again() == {"bad.onnx", "模型 0.onnx", "模型 2.onnx"}
    (data,) = [n for n in store.find("/bucket/out") if n.endswith(".data")]
    store.rm_file(data)
    assert again() == {"bad.onnx", "deep er/ext.onnx"}
    assert objects(store) == known
    weights = bytearray(store.cat_file("/bucket/in/deep er/w/weights.bin"))
    weights[3] ^= 1
    store.pipe_file("/bucket/in/deep er/w/weights.bin", bytes(weights))
    assert again() == {"bad.onnx", "deep er/ext.onnx"}
    (torn,) = [n for n in store.find("/bucket/out/.onnxrep") if b"0.onnx" in store.cat_file(n)]
    store.pipe_file(torn, store.cat_file(torn)[:100])
    assert again() == {"bad.onnx", "模型 0.onnx"}
    assert again(verify=False) == every


def test_a_failure_says_that_an_older_result_lies_there(tmp_path, store):
    store.pipe_file("/bucket/in/a.onnx", b"no model")
    store.pipe_file("/bucket/out/a.onnx", b"something")
    (outcome,) = run_batch([IN], OUT, OPTIONS).outcomes
    assert outcome.status == "invalid"
    assert outcome.reason.endswith("is not from this run")
    assert store.cat_file("/bucket/out/a.onnx") == b"something"


def test_a_dry_run_writes_nothing(tmp_path, store):
    upload(store, models(tmp_path / "in"))
    before = objects(store, "/bucket")
    assert run_batch([IN], None, replace(OPTIONS, dry_run=True)).counts == {"folded": 4, "invalid": 1}
    assert objects(store, "/bucket") == before


def test_across_processes(tmp_path):
    """A file URL is staged as any other; here the supervisors are processes of their own."""
    models(tmp_path / "in")
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
        summary = run_batch([f"file://{tmp_path}/in"], f"file://{tmp_path}/out", OPTIONS, executor=executor)
    run_batch([tmp_path / "in"], tmp_path / "local", OPTIONS)
    assert summary.counts == {"folded": 4, "invalid": 1}
    found = {n: d for n, d in files(tmp_path / "out").items() if not n.startswith(".onnxrep/")}
    assert found == files(tmp_path / "local")


# -- what is hostile ------------------------------------------------------------------------------------------------


def rename(path: Path, location: str) -> None:
    """Let a model name another file for its weights."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    onnx.save(model, path)


@pytest.mark.parametrize("location", ["../secret.bin", "/bucket/secret.bin", "w/../../secret.bin", "..\\secret.bin"])
def test_external_data_outside_the_folder_is_not_read(tmp_path, store, monkeypatch, location):
    with_data(tmp_path / "in/m.onnx")
    weights = (tmp_path / "in/w/weights.bin").read_bytes()
    rename(tmp_path / "in/m.onnx", location)
    upload(store, tmp_path / "in")
    store.pipe_file("/bucket/secret.bin", weights)
    fetched = []
    real = MemoryFileSystem.get_file

    def get_file(self, path, *arguments, **named):
        fetched.append(path)
        return real(self, path, *arguments, **named)

    monkeypatch.setattr(MemoryFileSystem, "get_file", get_file)
    (outcome,) = run_batch([IN], OUT, OPTIONS).outcomes
    assert outcome.status == "invalid"
    assert "leaves the model's folder" in outcome.reason
    assert fetched == ["/bucket/in/m.onnx"]


@pytest.mark.parametrize("link", ["w/weights.bin", "w"])
@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_links_are_not_followed(tmp_path, link, kind):
    with_data(tmp_path / "in/m.onnx")
    moved = tmp_path / "moved"
    (tmp_path / "in" / link).rename(moved)
    if kind == "symbolic":
        (tmp_path / "in" / link).symlink_to(moved)
    elif moved.is_dir():
        (tmp_path / "in" / link).mkdir()
        (tmp_path / "in" / link / "weights.bin").hardlink_to(moved / "weights.bin")
    else:
        (tmp_path / "in" / link).hardlink_to(moved)
    (outcome,) = run_batch([f"file://{tmp_path}/in"], tmp_path / "out", OPTIONS).outcomes
    assert outcome.status == "invalid"
    assert "missing beside the model" in outcome.reason


@pytest.mark.parametrize("name", ["../evil.onnx", "a//b.onnx", "./c.onnx", "d\\e.onnx"])
def test_names_of_objects_do_not_leave_the_output_folder(tmp_path, store, monkeypatch, name):
    monkeypatch.setattr(
        MemoryFileSystem, "find", lambda self, path, detail: {f"/bucket/in/{name}": {"size": 1, "type": "file"}}
    )
    with pytest.raises(UsageError, match="has no place in the output folder"):
        discover.find([IN], str(tmp_path / "out"))
    assert not discover.find([IN], str(tmp_path / "out"), exclude=["*"])


def test_a_model_that_is_replaced_meanwhile(tmp_path, store):
    with_data(tmp_path / "m.onnx")
    upload(store, tmp_path)

    def names(path):
        store.pipe_file("/bucket/in/m.onnx", b"another")
        return ["w/weights.bin"]

    with pytest.raises(MissingInput, match="replaced while it was read"):
        remote._fetched(f"{IN}/m.onnx", tmp_path / "stage", names)


# -- storage that fails ---------------------------------------------------------------------------------------------


def test_the_model_comes_last_and_only_if_its_data_arrived(tmp_path, store, monkeypatch):
    with_data(tmp_path / "in/m.onnx")
    upload(store, tmp_path / "in")
    store.pipe_file("/bucket/out/m.onnx", b"older")
    real, asked = MemoryFileSystem.put_file, []

    def put_file(self, path, target, **named):
        asked.append(target)
        if target.endswith(".data"):
            raise PermissionError("no more room")
        return real(self, path, target, **named)

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
    (outcome,) = run_batch([IN], OUT, OPTIONS).outcomes
    assert (outcome.status, outcome.reason) == ("error", "object storage: PermissionError: no more room")
    assert [name.rpartition(".")[2] for name in asked] == ["data"]
    assert store.cat_file("/bucket/out/m.onnx") == b"older"
    monkeypatch.setattr(MemoryFileSystem, "put_file", real)
    assert run_batch([IN], OUT, OPTIONS).counts == {"folded": 1}


def test_what_does_not_arrive_whole(tmp_path, store, monkeypatch):
    store.pipe_file("/bucket/in/m.onnx", block().SerializeToString())
    monkeypatch.setattr(MemoryFileSystem, "put_file", lambda self, path, target: self.pipe_file(target, b"half"))
    (outcome,) = run_batch([IN], OUT, OPTIONS).outcomes
    assert (outcome.status, outcome.reason) == ("error", "m.onnx: did not arrive whole")


def test_records_that_cannot_be_written(store, monkeypatch):
    def fail(*arguments):
        raise PermissionError("not yours")

    records = remote.Records(OUT)
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", fail)
    with pytest.raises(OutputError, match=r"a record was not written \(PermissionError: not yours\)"):
        records.append({"model": "m.onnx"})
    monkeypatch.setattr(MemoryFileSystem, "find", fail)
    with pytest.raises(OutputError, match=r"records cannot be read \(PermissionError: not yours\)"):
        records.newest()


def test_what_a_dead_worker_left_is_removed(tmp_path, staging):
    host = os.uname().nodename
    for owner in (999999999, os.getppid()):
        (staging / f"onnxrep-{host}-{owner}-x/in").mkdir(parents=True)
    with machine.scratch() as folder:
        assert sorted(p.name for p in staging.iterdir()) == sorted([f"onnxrep-{host}-{os.getppid()}-x", folder.name])
    (staging / f"onnxrep-{host}-{os.getppid()}-x/in").rmdir()
    (staging / f"onnxrep-{host}-{os.getppid()}-x").rmdir()


# -- the command ----------------------------------------------------------------------------------------------------


def test_which_objects(store):
    for name in ("in/a.onnx", "in/b/c.ONNX", "in/out/d.onnx", "in/out2/d.onnx", "in/.onnxrep-x.onnx", "in/x.txt"):
        store.pipe_file(f"/bucket/{name}", b"no model")

    def found(inputs, output=OUT, **filters) -> list[str]:
        return [job.model for job in discover.find(inputs, output, **filters)]

    assert found([IN], f"{IN}/out") == ["a.onnx", "b/c.ONNX", "out2/d.onnx"]
    assert found([IN]) == ["a.onnx", "b/c.ONNX", "out/d.onnx", "out2/d.onnx"]
    assert found([f"{IN}/x.txt", f"{IN}/b/"]) == ["c.ONNX", "x.txt"]
    assert found([IN], include=["*d.onnx"], exclude=["out2/*"]) == ["out/d.onnx"]


def test_wrong_usage(capsys, tmp_path, store, monkeypatch):
    zoo(tmp_path / "in", 1)
    upload(store, tmp_path / "in")
    for inputs, output, words in (
        (IN, IN, "is an input; choose another output folder"),
        (IN, "memory:///bucket/in/", "is an input; choose another output folder"),
        (tmp_path / "in", f"file://{tmp_path}/in", "is an input; choose another output folder"),
        ("memory://bucket/nowhere", OUT, "no such object or folder"),
        (f"{IN}/*.onnx", OUT, "no such object or folder"),
        ("nonsense://bucket", OUT, "Protocol not known"),
        (IN, "nonsense://bucket", "Protocol not known"),
    ):
        code, out, err = call(capsys, "batch", inputs, "-o", output)
        assert (code, out) == (2, "")
        assert words in err
        assert len(err.splitlines()) == 1
    monkeypatch.setitem(sys.modules, "fsspec", None)
    code, _, err = call(capsys, "batch", IN, "-o", tmp_path / "out")
    assert code == 2
    assert err == f"onnxrep: {IN}: needs the extra: pip install 'onnxrep[remote]'\n"
