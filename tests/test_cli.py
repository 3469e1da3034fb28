"""The command line as its users meet it: what it prints, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest

from models import skeletons
from models.blocks import seed_blocks
from models.net import Net
from onnxrep import __version__, cli

BLOCK = next(iter(seed_blocks()))


@pytest.fixture
def block(tmp_path):
    path = tmp_path / "block.onnx"
    onnx.save(BLOCK.model(), path)
    return path


def call(capsys, *arguments):
    """Exit code, stdout and stderr of a call."""
    try:
        code = cli.main([str(a) for a in arguments])
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_optimize_says_what_a_person_wants_to_know(capsys, block):
    code, out, err = call(capsys, "optimize", block)
    target = block.with_suffix(".rep.onnx")
    assert code == 0
    assert not err
    assert target.exists()
    lines = out.splitlines()
    assert lines[0] == str(block)
    assert any(line.split() == ["Conv", "2", "1"] for line in lines)
    assert any(line.split() == ["BatchNormalization", "3", "0"] for line in lines)
    assert "1 x merge: parallel branches merged into one" in out
    assert "verified" in lines
    assert "times the original's own rounding error (limit" in out
    assert lines[-1] == f"written to {target}"


def test_verbose_shows_every_fold(capsys, block):
    _, out, _ = call(capsys, "optimize", block, "-v")
    assert "1 Conv 3 + 1 Conv 1 + 3 BatchNormalization + 2 Add -> Conv 3" in out
    assert "error before" in out


def test_report(capsys, block, tmp_path):
    report = tmp_path / "report.json"
    assert call(capsys, "optimize", block, "--report", report, "--no-verify")[0] == 0
    data = json.loads(report.read_text())
    assert data["schema"] == 1
    assert data["status"] == "folded"
    assert data["options"] == {"verify": False}
    assert data["counts_before"]["Conv"] == 2
    assert data["counts_after"]["Conv"] == 1
    assert data["verification"] is None


def test_no_verify_says_so(capsys, block):
    _, out, _ = call(capsys, "optimize", block, "--no-verify")
    assert "not verified end to end" in out


def test_nothing_to_fold(capsys, tmp_path):
    n = Net(1)
    path = tmp_path / "plain.onnx"
    onnx.save(n.model(n.relu(n.input((1, 4, 6, 6)))), path)
    code, out, _ = call(capsys, "optimize", path)
    assert code == 0
    assert "nothing folds in this model; no file was written" in out
    assert [p.name for p in tmp_path.iterdir()] == ["plain.onnx"]
    code, out, _ = call(capsys, "optimize", path, "-o", tmp_path / "out.onnx")
    assert code == 0
    assert "written unchanged to" in out
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()


def test_a_rejected_model_is_exit_1_and_no_file(capsys, block, monkeypatch):
    from onnxrep import emit, folding
    from onnxrep.proof.certificate import Certificate

    monkeypatch.setattr(folding, "certify", lambda claims: [Certificate() for _ in claims])
    real = emit.weight_of
    monkeypatch.setattr(emit, "weight_of", lambda map_: real(map_) * 1.01)
    code, out, _ = call(capsys, "optimize", block)
    assert code == 1
    assert "rejected: " in out
    assert "no file was written" in out
    assert not block.with_suffix(".rep.onnx").exists()


def test_an_unverified_model_is_exit_1_unless_allowed(capsys, tmp_path):
    n = Net(1)
    x = n.input((1, 4, 6, 6))
    path = tmp_path / "noise.onnx"
    onnx.save(n.model(n.add(n.conv_bn(x, 4, 3), n.conv_bn(x, 4, 1), n.op("RandomNormalLike", x))), path)
    code, out, _ = call(capsys, "optimize", path)
    assert (code, "unverified: the model draws random numbers" in out) == (1, True)
    assert not path.with_suffix(".rep.onnx").exists()
    code, _, _ = call(capsys, "optimize", path, "--allow-unverified")
    assert code == 0
    assert path.with_suffix(".rep.onnx").exists()


def test_inspect(capsys, block):
    code, out, _ = call(capsys, "inspect", block)
    assert code == 0
    assert "1 region would fold" in out
    assert not block.with_suffix(".rep.onnx").exists()
    code, out, _ = call(capsys, "inspect", block, "--json")
    assert json.loads(out)["folds"][0]["kind"] == "merge"


def test_inspect_names_the_reason(capsys, tmp_path):
    n = Net(1)
    x = n.input((1, 4, 6, 6))
    path = tmp_path / "m.onnx"
    onnx.save(n.model(n.op("Mul", n.conv(x, 4, 3), n.constant(np.ones(6)))), path)
    code, out, _ = call(capsys, "inspect", path)
    assert code == 0
    assert "1 x not-per-channel" in out
    assert "nothing folds in this model" in out


def test_verify(capsys, block):
    call(capsys, "optimize", block)
    code, out, _ = call(capsys, "verify", block, block.with_suffix(".rep.onnx"))
    assert code == 0
    assert out.startswith("verified")
    other = block.with_name("other.onnx")
    onnx.save(BLOCK.model(seed=1), other)
    code, out, _ = call(capsys, "verify", block, other)
    assert code == 1
    assert out.startswith("rejected: ")
    code, out, _ = call(capsys, "verify", block, other, "--json")
    assert code == 1
    assert json.loads(out)["verdict"] == "rejected"


@pytest.mark.parametrize(
    ("content", "arguments", "code", "words"),
    [
        (None, [], 2, "no such file"),
        ("folder", [], 2, "is a folder"),
        (b"", [], 1, "empty file"),
        (b"garbage", [], 1, "not an ONNX file"),
        ("block", ["-o", "nowhere/out.onnx"], 2, "does not exist"),
        ("block", ["-o", "."], 2, "is a folder"),
        ("block", ["--provider", "cuda"], 2, "install onnxruntime-gpu"),
        ("block", ["--input-shape", "x:1,two"], 2, "expected NAME:1,3,224,224"),
        ("block", ["--input-shape", "y:1,8,9"], 2, "no such input"),
        ("block", ["--input-range", "x:255,0"], 2, "expected NAME:LOW,HIGH"),
        ("block", ["--input-range", "x:0,nan"], 2, "expected NAME:LOW,HIGH"),
        ("block", ["--input-range", "y:0,255"], 2, "no such input"),
        ("block", ["--input-data", "absent.npz"], 2, "no such file"),
        ("block", ["--report", "nowhere/r.json"], 2, "does not exist"),
        ("opset", [], 1, "opset 999"),
    ],
)
def test_one_line_that_says_what_is_wrong(capsys, block, tmp_path, monkeypatch, content, arguments, code, words):
    import onnxruntime

    if "cuda" in arguments and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this build has CUDA")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "input.onnx"
    if content == "folder":
        path.mkdir()
    elif content == "block":
        path = block
    elif content == "opset":
        model = onnx.load(block)
        model.opset_import[0].version = 999
        path.write_bytes(model.SerializeToString())
    elif content is not None:
        path.write_bytes(content)
    before = sorted(p.name for p in tmp_path.iterdir())
    got, out, err = call(capsys, "optimize", path, *arguments)
    assert got == code
    assert words in err
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err
    assert not out
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_wrong_usage(capsys):
    for arguments in ([], ["optimise"], ["optimize"], ["optimize", "m", "--provider", "tpu"], ["verify", "one"]):
        code, _, err = call(capsys, *arguments)
        assert code == 2
        assert len(err.splitlines()) == 1
        assert "--help" in err


def test_internal_errors_are_one_line_unless_debugging(capsys, block, monkeypatch):
    from onnxrep import pipeline

    def fail(*args, **kwargs):
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(pipeline, "fold", fail)
    code, _, err = call(capsys, "optimize", block)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "internal error" in err
    with pytest.raises(RuntimeError):
        cli.main(["optimize", str(block), "--debug"])


def test_interruption(capsys, block, monkeypatch):
    from onnxrep import pipeline

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "fold", stop)
    assert call(capsys, "optimize", block)[0] == 130


def test_names_cannot_command_the_terminal(capsys, tmp_path):
    n = Net(1)
    x = n.input((1, 4, 6, 6))
    model = n.model(n.op("Mul", n.conv(x, 4, 3), n.constant(np.ones(6))))
    for proto in model.graph.node:
        proto.name = f"\x1b[31m[red]{proto.name}"
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    _, out, err = call(capsys, "inspect", path, "-v")
    assert "\x1b" not in out + err
    assert "[red]" in out


def test_the_installed_command():
    module = [sys.executable, "-m", "onnxrep"]
    found = subprocess.run([*module, "--version"], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == f"onnxrep {__version__}"
    found = subprocess.run([*module, "--help"], capture_output=True, text=True, check=True)
    for command in ("optimize", "inspect", "verify"):
        assert command in found.stdout
    loaded = "import sys, onnxrep.cli; onnxrep.cli.parser(); print('numpy' in sys.modules, 'onnx' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False False", "help must not wait for heavy imports"


def test_what_is_not_verified_does_not_load_the_runtime(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(skeletons.fill("sg_qarepvgg_alpha/train_dynamic_bn"), path)
    for arguments in (["inspect", path], ["optimize", path, "--no-verify", "-o", tmp_path / "out.onnx"]):
        code = "import sys; from onnxrep.cli import main; main(sys.argv[1:]); print('onnxruntime' in sys.modules)"
        found = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert found.stdout.splitlines()[-1] == "False"
    assert (tmp_path / "out.onnx").exists()


def test_a_real_export(capsys, tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(skeletons.fill("sg_repvgg_alpha_se/train_legacy_bn"), path)
    code, out, _ = call(capsys, "optimize", path, "--input-shape", "input:1,3,64,64", "--threads", "2")
    assert code == 0
    assert "6 x merge" in out


@pytest.mark.parametrize("command", ["optimize", "inspect"])
def test_a_report_does_not_take_the_place_of_a_model(capsys, block, command):
    before = block.read_bytes()
    code, _, err = call(capsys, command, block, "--report", block)
    assert code == 2
    assert "is a model of this run" in err
    assert block.read_bytes() == before


def test_an_output_that_is_no_file(capsys, block, tmp_path):
    import os

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for arguments in (("-o", pipe), ("--report", pipe)):
        code, _, err = call(capsys, "optimize", block, *arguments)
        assert code == 2
        assert "is no regular file" in err
    assert pipe.is_fifo()


@pytest.mark.parametrize("content", ["zip", "npy", "empty"])
def test_input_data_that_is_none(capsys, block, tmp_path, content):
    data = tmp_path / "data.npz"
    if content == "zip":
        data.write_bytes(b"PK\x03\x04garbage")
    elif content == "npy":
        with data.open("wb") as file:
            np.save(file, np.zeros((1, 8, 4, 4), np.float32))
    else:
        np.savez(data, x=np.zeros((0, 1, *BLOCK.input_shapes()[0][1:]), np.float32))
    code, _, err = call(capsys, "optimize", block, "--input-data", data)
    assert code == 2
    assert "--input-data" in err


def test_a_folder_instead_of_a_model(capsys):
    code, _, err = call(capsys, "optimize", ".")
    assert code == 2
    assert "is a folder" in err


def test_inspect_is_a_gate(capsys, block):
    code, out, err = call(capsys, "inspect", block, "--fail-if-foldable")
    assert code == 1
    assert "1 region would fold" in out
    assert len(err.splitlines()) == 1
    assert f"run 'onnxrep optimize {block}'" in err
    call(capsys, "optimize", block)
    code, out, err = call(capsys, "inspect", block.with_suffix(".rep.onnx"), "--fail-if-foldable")
    assert (code, err) == (0, "")
    assert "nothing folds" in out


def test_inspect_says_what_would_be_gained(capsys, block):
    shape = ("--input-shape", "x:1,8,5")
    _, out, _ = call(capsys, "inspect", block, *shape)
    rows = {line.split()[0]: line.split() for line in reversed(out.splitlines()[1:]) if line}
    assert rows["parameters"][-1] == "%"
    assert rows["multiply-adds"][-1] == "%"
    assert "multiply-adds of one run at x 1x8x5" in out
    assert "1 x 1 Conv 3 + 1 Conv 1 + 3 BatchNormalization + 2 Add -> Conv 3" in out
    data = json.loads(call(capsys, "inspect", block, "--json", *shape)[1])
    assert data["totals_after"]["macs"] < data["totals_before"]["macs"]
    assert data["folds"][0]["ranges"][0]["sqnr"] > 0
    assert data["unmatched"] == []


def test_inspect_flags_what_quantizes_badly(capsys, tmp_path):
    n = Net(1)
    x = n.input((1, 32, 6, 6))
    small = n.draw(32, 32, 3, 3, scale=0.02)
    onnx.save(n.model(n.add(n.conv(x, 32, 3, weight=small), x)), tmp_path / "m.onnx")
    _, out, _ = call(capsys, "inspect", tmp_path / "m.onnx")
    assert "if you quantize to int8: 1 of 1 new kernel would lose precision" in out
    assert "per_channel=True" in out
    assert "for 1 kernel of these, one scale per channel is too coarse as well" in out


def test_what_a_caller_excludes(capsys, tmp_path):
    n = Net(1)
    x = n.input((1, 4, 6, 6))
    for _ in range(2):
        x = n.relu(n.add(n.conv_bn(x, 4, 3), n.conv_bn(x, 4, 1), x))
    path = tmp_path / "m.onnx"
    onnx.save(n.model(x), path)
    adds = [node.name for node in n.nodes if node.op_type == "Add"]
    for arguments in (("--only", adds[1]), ("--except", adds[3], "--except", adds[2], "--kind", "merge")):
        code, out, err = call(capsys, "inspect", path, *arguments)
        assert (code, err) == (0, "")
        assert "1 region would fold" in out
        assert "excluded: " in out
    target = tmp_path / "out.onnx"
    assert call(capsys, "optimize", path, "-o", target, "--only", adds[1])[0] == 0
    kept = {node.name for node in onnx.load(target).graph.node}
    assert {adds[2], adds[3]} <= kept
    assert adds[0] not in kept
    _, _, err = call(capsys, "inspect", path, "--only", "typo*")
    assert "no node has a name or an output that matches 'typo*'" in err
    assert call(capsys, "inspect", path, "--kind", "melt")[0] == 2


@pytest.mark.parametrize(
    ("given", "coloured"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_colours_and_whole_lines_where_nobody_looks(tmp_path, given, coloured):
    import os

    n = Net(1)
    value = n.input((1, 4, 6, 6), "x" * 300)
    path = tmp_path / "m.onnx"
    onnx.save(n.model(n.add(n.conv_bn(value, 4, 3), n.conv_bn(value, 4, 1))), path)
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    environment = clean | {"TERM": "xterm-256color"} | given
    command = [sys.executable, "-m", "onnxrep", "inspect", str(path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert ("\x1b[3" in found.stdout) is coloured
    assert "x" * 300 in found.stdout
    assert not found.stderr


def test_a_narrow_terminal_and_progress_that_goes(tmp_path):
    """Under a terminal of 80 columns: no line of ours is longer, and what shows progress is erased again."""
    import os
    import pty
    import re

    path = tmp_path / "net.onnx"
    onnx.save(skeletons.fill("repvgg_a0/train_legacy_bn"), path)
    parent, child = pty.openpty()
    environment = os.environ | {"COLUMNS": "80", "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [sys.executable, "-m", "onnxrep", "inspect", path.name],
        stdout=child,
        stderr=child,
        env=environment,
        cwd=tmp_path,
    )
    os.close(child)
    pieces = []
    while True:
        try:
            piece = os.read(parent, 1 << 16)
        except OSError:
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(parent)
    assert process.wait() == 0
    text = b"".join(pieces).decode()
    begin = text.index("net.onnx")
    assert "\x1b[2K" in text[:begin] or "prove ..." not in text  # the line of progress is erased
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text[begin:])
    assert max(map(len, plain.splitlines())) <= 80
    assert "22 regions would fold" in plain


@pytest.mark.parametrize(("option", "older"), [("--report", '{"schema": 1}'), ("--html", "<!doctype html>")])
def test_a_report_takes_the_place_of_an_older_one_only(capsys, block, tmp_path, option, older):
    """Not of what is there besides: a model's data, or an input of this run."""
    data = tmp_path / "weights.bin"
    data.write_bytes(b"\x80weights")
    code, _, err = call(capsys, "inspect", block, option, data)
    assert (code, data.read_bytes()) == (2, b"\x80weights")
    assert "of another kind" in err
    data.write_text(older)
    assert call(capsys, "inspect", block, option, data)[0] == 0
