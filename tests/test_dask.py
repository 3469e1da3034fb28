"""A batch on a real Dask cluster: a scheduler and two workers, one of which is killed in the middle."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time

import onnx
import pytest

from models.net import Net
from onnxrep import BatchOptions, run_batch
from onnxrep.batch import journal
from tests.processes import Started, files
from tests.test_cli import call

pytestmark = pytest.mark.skipif(
    os.name != "posix" or importlib.util.find_spec("distributed") is None, reason="Dask is not installed"
)


def model(seed):
    net = Net(seed)
    x = net.input((1, 4, 8, 8))
    return net.model(net.relu(net.add(net.conv_bn(x, 4, 3), net.bn(x))))


@pytest.fixture
def cluster(tmp_path):
    """The scheduler's address, and the processes of two workers."""
    where = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    common = ["--scheduler-file", str(where), "--no-dashboard"]
    started = []
    with open(tmp_path / "log", "wb") as log:

        def start(*arguments):
            started.append(subprocess.Popen([*dask, *arguments, *common], stdout=log, stderr=log, cwd=tmp_path))

        start("scheduler", "--host", "127.0.0.1", "--port", "0")
        for _ in range(2):
            start("worker", "--nthreads", "1", "--no-nanny")
        end = time.monotonic() + 60
        while not where.exists():
            assert time.monotonic() < end
            time.sleep(0.1)
        time.sleep(0.1)
        yield json.loads(where.read_text())["address"], started[1:]
        for process in started:
            process.kill()
            process.wait()


def plain(out):
    """The newest records without what differs from run to run."""
    varying = ("seconds", "peak", "report", "options")
    found = journal.newest(out / journal.NAME)
    return {m: {k: v for k, v in r.items() if k not in varying} for m, r in found.items()}


def test_a_worker_is_killed(tmp_path, cluster):
    address, workers = cluster
    (tmp_path / "in").mkdir()
    for seed in range(16):
        onnx.save(model(seed), tmp_path / f"in/{seed}.onnx")
    (tmp_path / "in/bad.onnx").write_bytes(b"<html>")
    with Started(tmp_path / "in", tmp_path / "out", "--dask", address) as run:
        run.until(lambda: len(list(journal.read(tmp_path / "out" / journal.NAME))) >= 4)
        assert workers[0].poll() is None
        workers[0].kill()
        assert len(list(journal.read(tmp_path / "out" / journal.NAME))) < 17  # there was work left
        _, err = run.process.communicate(timeout=120)
    assert run.process.returncode == 1, err
    run_batch([tmp_path / "in"], tmp_path / "local", BatchOptions(jobs=2, timeout=30))
    assert plain(tmp_path / "out") == plain(tmp_path / "local")
    assert len(plain(tmp_path / "out")) == 17
    assert files(tmp_path / "out") == files(tmp_path / "local")
    assert sum(1 for _ in journal.read(tmp_path / "out" / journal.NAME)) == 17


def test_no_scheduler(tmp_path):
    onnx.save(model(0), tmp_path / "m.onnx")
    command = [sys.executable, "-m", "onnxrep", "batch", tmp_path / "m.onnx", "-o", tmp_path / "out"]
    environment = os.environ | {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "1"}
    done = subprocess.run(
        [*command, "--dask", "tcp://127.0.0.1:9"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 2
    assert "no Dask scheduler answers" in done.stderr.splitlines()[-1]


def test_dask_is_not_installed(capsys, monkeypatch, tmp_path):
    onnx.save(model(0), tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "distributed", None)
    code, _, err = call(capsys, "batch", tmp_path / "m.onnx", "-o", tmp_path / "out", "--dask", "tcp://127.0.0.1:9")
    assert code == 2
    assert "pip install 'onnxrep[dask]'" in err
