"""Files: what is no model, data outside the model, and writing that leaves things whole."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from models.blocks import seed_blocks
from models.net import Net
from onnxrep import Options, files, optimize, pipeline
from onnxrep.errors import InvalidModel, MissingInput, OutputError, UsageError
from onnxrep.files import writing
from onnxrep.proof.errors import CannotRun
from onnxrep.proof.sessions import Runtime

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


def with_untouched(folder: Path) -> Path:
    """A model with external data, of which some is not touched by any fold, numbers and integers."""
    net = Net(3)
    x = net.input((1, 4, 6, 6))
    folded = net.relu(net.add(net.conv_bn(x, 4, 3), net.conv_bn(x, 4, 1)))
    net.initializers.append(
        numpy_helper.from_array(np.linspace(-1, 1, 6 * 900, dtype=np.float32).reshape(6, 900), "table")
    )
    net.initializers.append(numpy_helper.from_array(np.arange(700)[::-1].copy(), "order"))
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    proto = net.model(net.op("Gather", net.relu(net.op("MatMul", folded, "table")), "order", axis=3))
    onnx.save_model(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=1)
    return path


def runs(found: Path | bytes) -> np.ndarray:
    """The output of a model as ONNX Runtime loads it from its file, or of its bytes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(found, providers=["CPUExecutionProvider"])
    shape = [size if isinstance(size, int) else 12 for size in session.get_inputs()[0].shape]
    return session.run(None, {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)})[0]


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
    assert np.array_equal(runs(result.model.SerializeToString()), runs(optimize(model()).model.SerializeToString()))


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


def cached(folder: Path) -> Path:
    """A model in the layout of a Hugging Face cache; the files of its snapshot are links."""
    path = with_untouched(folder / "plain")
    snapshot, blobs = folder / "models--a--b" / "snapshots" / "1f" / "onnx", folder / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate((path, path.with_name("weights.bin"))):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../../blobs", str(number)))
    return snapshot / path.name


@pytest.mark.skipif(os.name != "posix", reason="links")
@pytest.mark.parametrize("place", ["beside", "elsewhere"])
def test_a_hugging_face_cache(tmp_path, place):
    path = cached(tmp_path)
    target = (path.parent if place == "beside" else tmp_path) / "out.onnx"
    with pytest.raises(InvalidModel, match=r"symbolic link .* add --hf-cache"):
        optimize(path, target)
    result = optimize(path, target, Options(hf_cache=True))
    assert result.status == "folded"
    assert result.report.options == {"hf_cache": True}
    assert np.allclose(runs(target), runs(path), atol=1e-5)
    assert not any(Path(p).is_symlink() for p in result.report.written)
    assert len(result.report.written) == 2


@pytest.mark.skipif(os.name != "posix", reason="links")
@pytest.mark.parametrize("what", ["model", "data", "data behind a folder"])
def test_links_out_of_a_hugging_face_cache(tmp_path, what):
    path = cached(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    link = path if what == "model" else path.with_name("weights.bin")
    (outside / "target").write_bytes(link.read_bytes())
    link.unlink()
    if what == "data behind a folder":
        (path.parent / "inner").symlink_to(outside)
        link.symlink_to("inner/target")
    else:
        link.symlink_to(outside / "target")
    with pytest.raises(InvalidModel, match=r"leads? out of the cache"):
        optimize(path, options=Options(hf_cache=True))


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_hugging_face_rule_without_such_a_cache(tmp_path):
    path = with_untouched(tmp_path)
    (tmp_path / "weights.bin").rename(tmp_path / "elsewhere.bin")
    (tmp_path / "weights.bin").symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(InvalidModel, match="is a link"):
        optimize(path, options=Options(hf_cache=True))


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_a_model_that_is_a_link(tmp_path):
    """Data could lie beside the link or beside the file: without data there is no doubt."""
    real, link = tmp_path / "real", tmp_path / "link.onnx"
    path = with_untouched(real)
    link.symlink_to(path)
    with pytest.raises(InvalidModel, match=f"give the path of the file itself, {path}"):
        optimize(link)
    link.unlink()
    link.symlink_to(saved(real, name="whole.onnx"))
    assert optimize(link).status == "folded"
    (tmp_path / "folder").symlink_to(real)
    assert optimize(tmp_path / "folder" / "model.onnx").status == "folded"


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
@pytest.mark.parametrize("kind", ["linked folder", "pipe", "folder", "file in between"])
def test_ways_to_external_data_that_are_refused(tmp_path, kind):
    path = external(tmp_path)
    inner = tmp_path / "inner"
    location = "inner/weights.bin"
    if kind == "linked folder":
        (tmp_path / "real").mkdir()
        inner.symlink_to(tmp_path / "real")
        (tmp_path / "weights.bin").rename(tmp_path / "real" / "weights.bin")
    elif kind == "pipe":
        inner.mkdir()
        os.mkfifo(inner / "weights.bin")
    elif kind == "folder":
        (inner / "weights.bin").mkdir(parents=True)
    else:
        inner.write_bytes(b"")
    _locations(path, location=location)
    with pytest.raises(InvalidModel, match=r"is a link|not a regular file"):
        optimize(path)


def test_external_data_in_a_folder_below(tmp_path):
    path = external(tmp_path)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "weights.bin").write_bytes((tmp_path / "weights.bin").read_bytes())
    _locations(path, location="inner/weights.bin")
    assert optimize(path).status == "folded"


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


@pytest.mark.skipif(os.name != "posix", reason="modes")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_modes_follow_the_umask(tmp_path, mask):
    """Of the data file too: onnx itself writes that with another mode than the model."""
    inside, outside = with_untouched(tmp_path / "in"), tmp_path / "out"
    outside.mkdir()
    before = os.umask(mask)
    try:
        optimize(inside, outside / "model.onnx")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(p.stat().st_mode) for p in outside.iterdir()} == {0o666 & ~mask}
    assert len(list(outside.iterdir())) == 2


def test_in_place(tmp_path):
    path = saved(tmp_path)
    result = optimize(path, path)
    assert path.read_bytes() == result.model.SerializeToString(deterministic=True)


def test_in_place_with_external_data(tmp_path):
    path = with_untouched(tmp_path)
    data, before = (tmp_path / "weights.bin").read_bytes(), runs(path)
    optimize(path, path)
    assert np.allclose(runs(path), before, atol=1e-5)
    assert (tmp_path / "weights.bin").read_bytes() == data
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "weights.bin"]


def meanwhile(monkeypatch, action):
    """Let something happen while a model is worked on: after it was folded, before it is verified and written."""
    real = pipeline.fold

    def fold(*arguments, **options):
        found = real(*arguments, **options)
        action()
        return found

    monkeypatch.setattr(pipeline, "fold", fold)


def test_an_input_that_is_replaced_during_the_run(tmp_path, monkeypatch):
    """The record tells of the bytes that were read; a newer model is not overwritten in place."""
    path, target, newer = saved(tmp_path), tmp_path / "out.onnx", model(seed=1).SerializeToString()
    old = path.read_bytes()
    meanwhile(monkeypatch, lambda: path.write_bytes(newer))
    result = optimize(path, target)
    assert result.report.input_sha256 == hashlib.sha256(old).hexdigest()
    assert np.allclose(runs(target), runs(old), atol=1e-5)
    path.write_bytes(old)
    with pytest.raises(OutputError, match="changed while it was folded in place"):
        optimize(path, path)
    assert path.read_bytes() == newer


@pytest.mark.parametrize("kind", ["content", "longer", "shorter", "replaced", "gone", "link"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_external_data_that_changes_during_the_run(tmp_path, monkeypatch, kind, elsewhere):
    path, outside = with_untouched(tmp_path / "in"), tmp_path / "out"
    data = path.with_name("weights.bin")
    content = data.read_bytes()

    def change():
        if kind in ("replaced", "gone", "link"):
            data.rename(tmp_path / "old.bin")
        if kind == "link":
            data.symlink_to(tmp_path / "old.bin")
        elif kind != "gone":
            other = {"longer": content + b"\0", "shorter": content[:-4]}.get(kind, content[::-1])
            data.write_bytes(other)
            os.utime(data, ns=(1, 1))

    outside.mkdir()
    meanwhile(monkeypatch, change)
    target = (outside if elsewhere else path.parent) / "out.onnx"
    with pytest.raises(OutputError, match=r"weights.bin changed while"):
        optimize(path, target, Options(verify=False))
    assert not list(outside.iterdir())
    assert sorted(p.name for p in path.parent.iterdir()) == sorted(
        {"model.onnx", *([] if kind == "gone" else [data.name])}
    )


def test_the_record_covers_external_data(tmp_path):
    path = with_untouched(tmp_path)
    result = optimize(path)
    expected = hashlib.sha256((tmp_path / "weights.bin").read_bytes()).hexdigest()
    assert result.report.external_sha256 == {"weights.bin": expected}
    assert optimize(model()).report.external_sha256 == {}


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


# -- what is left of older runs, and of those that fail ---------------------------------------------------------------


def data_files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("*.data"))


@pytest.mark.parametrize(
    "other", ["nothing", "another model", "in capitals", "put aside", "a temporary", "changed", "link", "foreign name"]
)
def test_the_data_file_of_the_output_that_is_replaced(tmp_path, other):
    """It goes if this package wrote it and nothing needs it; in doubt it stays."""
    first, folder = with_untouched(tmp_path / "first"), tmp_path / "out"
    folder.mkdir()
    target = folder / "m.onnx"
    optimize(first, target, Options(verify=False))
    (old,) = data_files(folder)
    if other == "another model":
        (folder / "also.onnx").write_bytes(target.read_bytes())
    elif other == "in capitals":
        (folder / "m.ONNX").write_bytes(target.read_bytes())
    elif other == "put aside":
        (folder / "m.onnx.backup").write_bytes(target.read_bytes())
    elif other == "a temporary":
        (folder / ".onnxrep-elsewhere-1-0").write_bytes(target.read_bytes())
    elif other == "changed":
        (folder / old).write_bytes(b"edited by hand")
    elif other == "link":
        (folder / old).rename(tmp_path / "kept")
        (folder / old).symlink_to(tmp_path / "kept")
    elif other == "foreign name":
        proto = onnx.load(target, load_external_data=False)
        for tensor in filter(files.is_external, proto.graph.initializer):
            next(e for e in tensor.external_data if e.key == "location").value = "m.data"
        (folder / old).rename(folder / "m.data")
        old = "m.data"
        target.write_bytes(proto.SerializeToString())
    optimize(model(), target, Options(verify=False))
    assert data_files(folder) == ([] if other == "nothing" else [old])


def test_a_run_that_writes_the_same_keeps_its_data(tmp_path):
    path, target = with_untouched(tmp_path / "in"), tmp_path / "m.onnx"
    optimize(path, target)
    before = data_files(tmp_path)
    optimize(path, target)
    assert data_files(tmp_path) == before
    assert len(before) == 1
    assert np.allclose(runs(target), runs(path), atol=1e-5)


@pytest.mark.parametrize("step", ["the check", "the replacement"])
def test_new_data_goes_if_the_model_cannot_be_written(tmp_path, monkeypatch, step):
    path, folder = with_untouched(tmp_path / "in"), tmp_path / "out"
    folder.mkdir()
    (folder / "m.onnx").write_bytes(b"precious")
    real = os.replace

    def fail(source, target):
        if str(target).endswith(".onnx"):
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    def refuse(self, model, *arguments, **options):
        if isinstance(model, Path):
            assert len(data_files(folder)) == 1
            raise CannotRun("it does not load")
        return session(self, model, *arguments, **options)

    session = Runtime.session
    if step == "the check":
        monkeypatch.setattr(Runtime, "session", refuse)
    else:
        monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match=r"does not load|Input/output error"):
        optimize(path, folder / "m.onnx")
    assert [p.name for p in folder.iterdir()] == ["m.onnx"]
    assert (folder / "m.onnx").read_bytes() == b"precious"


@pytest.mark.parametrize("moment", ["before the replacement", "after it"])
def test_a_run_that_is_ended_keeps_the_data_of_the_model_that_is_there(tmp_path, monkeypatch, moment):
    path, target = with_untouched(tmp_path / "in"), tmp_path / "m.onnx"
    real = os.replace

    def end(source, goal):
        if str(goal).endswith(".onnx"):
            if moment == "after it":
                real(source, goal)
            raise KeyboardInterrupt
        real(source, goal)

    monkeypatch.setattr(os, "replace", end)
    with pytest.raises(KeyboardInterrupt):
        optimize(path, target, Options(verify=False))
    assert target.exists() == (moment == "after it")
    assert len(data_files(tmp_path)) == target.exists()
    if target.exists():
        assert np.allclose(runs(target), runs(path), atol=1e-5)


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are text there")
def test_a_name_that_is_no_text(tmp_path):
    path = with_untouched(tmp_path / "in")
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(OutputError, match="no UTF-8"):
        optimize(path, folder / "x\udcfe.onnx", Options(verify=False))
    assert list(folder.iterdir()) == []


def test_what_does_not_read_back_is_not_written(tmp_path, monkeypatch):
    """A disk that loses a block: found before the old file goes."""
    source, target = saved(tmp_path), tmp_path / "out.onnx"
    target.write_bytes(b"precious")
    real = writing.settle

    def lose(file):
        real(file)
        os.pwrite(file.fileno(), b"\0" * 16, 64)

    monkeypatch.setattr(writing, "settle", lose)
    with pytest.raises(OutputError, match="does not read back"):
        optimize(source, target)
    assert target.read_bytes() == b"precious"


LIMITED = """
import resource, sys
from onnxrep.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(os.name != "posix", reason="limits of a process")
@pytest.mark.parametrize("place", ["model", "data", "in place"])
def test_a_disk_that_is_full(tmp_path, place):
    """The system refuses in the middle of writing: one line, exit code 1, and all as it was."""
    path, folder = with_untouched(tmp_path / "in"), tmp_path / "out"
    folder.mkdir()
    target = path if place == "in place" else folder / "m.onnx"
    if place != "in place":
        target.write_bytes(b"precious")
    limit = 8000 if place == "data" else 600
    source = path if place == "data" else saved(tmp_path)
    if place == "in place":
        target = source
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    command = [sys.executable, "-B", "-c", LIMITED, str(limit), "optimize", source, "-o", target, "--no-verify"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert len(found.stderr.splitlines()) == 1
    assert "not written (File too large)" in found.stderr
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only(tmp_path):
    source, folder = saved(tmp_path), tmp_path / "out"
    folder.mkdir(mode=0o555)
    with pytest.raises(OutputError, match="is not writable"):
        optimize(source, folder / "m.onnx")


def test_names_with_blanks_and_line_breaks(tmp_path):
    folder = tmp_path / " two  blanks\nand a line "
    folder.mkdir()
    path = with_untouched(folder)
    path = path.rename(folder / "a\tb\n.onnx")
    target = tmp_path / "\x1b[31m\n.onnx"
    result = optimize(path, target)
    assert result.status == "folded"
    assert np.allclose(runs(target), runs(path), atol=1e-5)
