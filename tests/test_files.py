"""Files: what is no model, data outside the model, and writing that leaves things whole."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from models.blocks import seed_blocks
from models.net import Net
from onnxrep import Options, files, optimize
from onnxrep.errors import InvalidModel, MissingInput, OutputError, UsageError
from onnxrep.files import writing
from tests.tools import run

BLOCK = next(iter(seed_blocks()))


def model(seed=0):
    return BLOCK.model(seed=seed)


def saved(folder: Path, proto=None, name="model.onnx") -> Path:
    path = folder / name
    onnx.save(model() if proto is None else proto, path)
    return path


def external(folder: Path, name="model.onnx", data="weights.bin") -> Path:
    """A model with all weights in a file beside it."""
    path = folder / name
    onnx.save_model(model(), path, save_as_external_data=True, location=data, size_threshold=0)
    return path


# -- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html></html>", "not an ONNX file"),
        (bytes(range(256)) * 4, "not an ONNX file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (model().SerializeToString()[:-100], "not an ONNX file"),
    ],
)
def test_what_is_no_model(tmp_path, content, words):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InvalidModel, match=words):
        optimize(path)


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    size, length = len(payload), b""
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + payload


def test_graphs_nested_too_deep(tmp_path):
    graph = b""
    for _ in range(500):  # graph.node.attribute.g
        graph = _field(1, _field(4, b"If") + _field(5, _field(1, b"then_branch") + _field(6, graph)))
    path = tmp_path / "deep.onnx"
    path.write_bytes(b"\x08\x08" + _field(7, graph))
    with pytest.raises(InvalidModel, match=r"nested too deep|not an ONNX file"):
        optimize(path)


def test_what_is_not_there(tmp_path):
    with pytest.raises(MissingInput, match="no such file"):
        optimize(tmp_path / "nowhere.onnx")
    with pytest.raises(MissingInput, match="is a folder"):
        optimize(tmp_path)
    with pytest.raises(FileNotFoundError):
        optimize(tmp_path / "nowhere.onnx")


def _grow(tensor):
    tensor.dims[0] = 1 << 31
    tensor.dims.append(1 << 31)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_grow, "bytes of data for dims"),
        (lambda t: setattr(t, "raw_data", t.raw_data[:-4]), "bytes of data for dims"),
        (lambda t: t.dims.__setitem__(0, -1), "negative dimension"),
        (lambda t: (t.ClearField("raw_data"), t.float_data.extend([1.0])), "1 values for dims"),
    ],
)
def test_tensors_whose_data_does_not_fit(tmp_path, change, words):
    proto = model()
    change(proto.graph.initializer[0])
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(InvalidModel, match=words):
        optimize(path)


def test_typed_fields_are_read_too(tmp_path):
    proto = model()
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, TensorProto.FLOAT, values.shape, values.ravel()))
    assert optimize(saved(tmp_path, proto)).status == "folded"


def test_external_data_is_read_from_the_models_folder(tmp_path, monkeypatch):
    inside = tmp_path / "folder"
    inside.mkdir()
    path = external(inside)
    monkeypatch.chdir(tmp_path)
    result = optimize(path)
    assert result.status == "folded"
    reference = optimize(model()).model
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 8, 12)).astype(np.float32)}
    assert np.array_equal(run(result.model, feeds)[0], run(reference, feeds)[0])


def _locations(path, **entries):
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer[:1]:
        for entry in tensor.external_data:
            if entry.key in entries:
                entry.value = entries[entry.key]
    path.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"location": "../weights.bin"}, "leaves the model's folder"),
        ({"location": "a/../../weights.bin"}, "leaves the model's folder"),
        ({"location": "/etc/passwd"}, "leaves the model's folder"),
        ({"location": "absent.bin"}, "is missing"),
        ({"location": ""}, "no location"),
        ({"offset": "99999999999"}, "of a file of"),
        ({"offset": "-4"}, "of a file of"),
        ({"offset": "many"}, "no number"),
        ({"length": "4"}, "4 bytes for dims"),
    ],
)
def test_external_references_that_are_refused(tmp_path, entries, words):
    path = external(tmp_path)
    _locations(path, **entries)
    with pytest.raises(InvalidModel, match=words):
        optimize(path)


@pytest.mark.skipif(os.name != "posix", reason="links")
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_links_to_external_data_are_refused(tmp_path, link):
    path = external(tmp_path)
    (tmp_path / "weights.bin").rename(tmp_path / "elsewhere.bin")
    link(tmp_path / "elsewhere.bin", tmp_path / "weights.bin")
    with pytest.raises(InvalidModel, match=r"is a link|single name"):
        optimize(path)


def test_external_data_of_a_model_in_memory(tmp_path):
    proto = onnx.load(external(tmp_path), load_external_data=False)
    with pytest.raises(UsageError, match="give its path"):
        optimize(proto)
    with pytest.raises(InvalidModel, match="give its path"):
        optimize(proto.SerializeToString())


# -- writing --------------------------------------------------------------------------------------------------------


def test_the_output_is_written_whole_with_the_usual_mode(tmp_path):
    target = tmp_path / "out.onnx"
    result = optimize(saved(tmp_path), target)
    assert target.read_bytes() == result.model.SerializeToString(deterministic=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "out.onnx"]
    if os.name == "posix":
        mask = os.umask(0)
        os.umask(mask)
        assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask


def test_in_place(tmp_path):
    path = saved(tmp_path)
    result = optimize(path, path)
    assert path.read_bytes() == result.model.SerializeToString(deterministic=True)


def test_nothing_folded_means_the_same_bytes(tmp_path):
    n = Net(1)
    proto = n.model(n.relu(n.input((1, 4, 6, 6))))
    path = saved(tmp_path, proto)
    path.write_bytes(path.read_bytes() + b"\xfa\x01\x03abc")  # a field that no one knows yet
    target = tmp_path / "out.onnx"
    assert optimize(path, target).status == "unchanged"
    assert target.read_bytes() == path.read_bytes()
    target.unlink()
    optimize(path, target, keep_unchanged=False)
    assert not target.exists()


def test_a_rejected_model_is_not_written(tmp_path, monkeypatch):
    from onnxrep import emit, folding
    from onnxrep.proof.certificate import Certificate

    monkeypatch.setattr(folding, "certify", lambda claims: [Certificate() for _ in claims])
    real = emit.weight_of
    monkeypatch.setattr(emit, "weight_of", lambda map_: real(map_) * 1.01)
    target = tmp_path / "out.onnx"
    target.write_bytes(b"precious")
    source = saved(tmp_path)
    result = optimize(source, target)
    assert result.status == "rejected"
    assert target.read_bytes() == b"precious"
    assert result.model == onnx.load(source)
    assert result.report.output == ""


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_failure_while_writing_leaves_what_was_there(tmp_path, monkeypatch, step):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    source, target = saved(tmp_path), tmp_path / "out.onnx"
    target.write_bytes(b"precious")
    if step == "write":
        monkeypatch.setattr(writing, "settle", full)
    else:
        monkeypatch.setattr(os, step, full)
    with pytest.raises(OutputError, match="No space left"):
        optimize(source, target)
    assert target.read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "out.onnx"]


def test_targets_that_are_refused_before_any_work(tmp_path):
    source = saved(tmp_path)
    for target, words in ((tmp_path, "is a folder"), (tmp_path / "no" / "out.onnx", "does not exist")):
        with pytest.raises(UsageError, match=words):
            optimize(source, target)


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_links_are_written_through_only_if_asked(tmp_path):
    source, real, link = saved(tmp_path), tmp_path / "real.onnx", tmp_path / "link.onnx"
    real.write_bytes(b"precious")
    link.symlink_to(real)
    with pytest.raises(UsageError, match="symbolic link"):
        optimize(source, link)
    assert real.read_bytes() == b"precious"
    optimize(source, link, Options(follow_symlinks=True))
    assert link.is_symlink()
    assert onnx.load(real).graph.node[0].op_type == "Conv"


@pytest.mark.skipif(os.name != "posix", reason="process numbers")
def test_temporary_files_of_dead_runs_go(tmp_path):
    source = saved(tmp_path)
    import socket

    host = socket.gethostname()
    dead, foreign = tmp_path / f".onnxrep-{host}-999999999-0", tmp_path / ".onnxrep-otherhost-999999999-0"
    mine = tmp_path / f".onnxrep-{host}-{os.getppid()}-0"
    for path in (dead, foreign, mine):
        path.write_bytes(b"half")
    optimize(source, tmp_path / "out.onnx")
    assert not dead.exists()
    assert foreign.exists()
    assert mine.exists()


def runs(path: Path) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 8, 12)).astype(np.float32)}
    return session.run(None, feeds)[0]


def test_external_data_in_the_same_folder_stays_where_it_is(tmp_path):
    proto = model()
    proto.graph.initializer.append(numpy_helper.from_array(np.arange(5000, dtype=np.float32), "untouched"))
    path = tmp_path / "model.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    before = (tmp_path / "weights.bin").read_bytes()
    optimize(path, tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    (kept,) = [t for t in written.graph.initializer if files.is_external(t)]
    assert kept.name == "untouched"
    assert (tmp_path / "weights.bin").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "out.onnx", "weights.bin"]
    assert np.allclose(runs(tmp_path / "out.onnx"), runs(path), atol=1e-5)


def test_external_data_for_another_folder_is_copied_under_a_name_of_our_own(tmp_path):
    inside = tmp_path / "in"
    outside = tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    proto = model()
    proto.graph.initializer.append(numpy_helper.from_array(np.arange(5000, dtype=np.float32), "untouched"))
    path = inside / "model.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    result = optimize(path, outside / "model.onnx")
    names = sorted(p.name for p in outside.iterdir())
    assert len(names) == 2
    assert names[0].startswith("model.")
    assert names[0].endswith(".data")
    assert result.report.written == (str(outside / names[0]), str(outside / "model.onnx"))
    assert np.allclose(runs(outside / "model.onnx"), runs(path), atol=1e-5)
    loaded = {t.name: numpy_helper.to_array(t) for t in onnx.load(outside / "model.onnx").graph.initializer}
    assert np.array_equal(loaded["untouched"], np.arange(5000, dtype=np.float32))


def test_external_data_on_request(tmp_path):
    target = tmp_path / "out.onnx"
    n = Net(1)
    x = n.input((1, 16, 8, 8))
    path = saved(tmp_path, n.model(n.add(n.conv_bn(x, 16, 3), n.conv_bn(x, 16, 1))))
    optimize(path, target, Options(external_data=True))
    written = onnx.load(target, load_external_data=False)
    assert [t.dims for t in written.graph.initializer if files.is_external(t)] == [[16, 16, 3, 3]]
    offset = next(int(e.value) for t in written.graph.initializer for e in t.external_data if e.key == "offset")
    assert offset % files.ALIGNMENT == 0
    again = optimize(path, target, Options(external_data=True))
    assert len(list(tmp_path.glob("*.data"))) == 1
    assert again.status == "folded"


def test_names_in_any_script(tmp_path):
    folder = tmp_path / "модели 模型"
    folder.mkdir()
    target = folder / "résultat fin.onnx"
    assert optimize(saved(folder, name="ネット.onnx"), target).status == "folded"
    assert target.exists()


@pytest.mark.parametrize("kind", ["other content", "link", "same content"])
def test_a_data_file_that_is_there_already(tmp_path, kind):
    """A file of the data file's name is used only if it holds what would be written."""
    net = Net(0)
    x = net.input((1, 16, 4, 4))
    proto = net.model(net.relu(net.add(net.conv(x, 16, 3), net.conv(x, 16, 1))))
    targets = [tmp_path / name / "m.onnx" for name in ("first", "second")]
    for target in targets:
        target.parent.mkdir()
    options = Options(verify=False, external_data=True)
    optimize(proto, targets[0], options)
    data = next(targets[0].parent.glob("*.data"))
    there = targets[1].with_name(data.name)
    if kind == "link":
        there.symlink_to(tmp_path / "nothing")
    else:
        there.write_bytes(data.read_bytes() if kind == "same content" else b"\1" * data.stat().st_size)
    optimize(proto, targets[1], options)
    written = onnx.load(targets[1], load_external_data=False)
    used = {e.value for t in written.graph.initializer for e in t.external_data if e.key == "location"}
    assert (used == {data.name}) == (kind == "same content")
    old, new = (onnx.load(target).graph.initializer for target in targets)
    for mine, theirs in zip(old, new, strict=True):
        assert np.array_equal(numpy_helper.to_array(mine), numpy_helper.to_array(theirs))


@pytest.mark.parametrize("kind", [0, 99])
def test_a_tensor_of_an_unknown_type(tmp_path, kind):
    proto = model()
    proto.graph.initializer[0].data_type = kind
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(InvalidModel, match="unknown type"):
        optimize(path)
