"""A batch's files: which models are found, where results go, and a journal that survives being cut off."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from onnxrep.batch import discover, journal, runner
from onnxrep.errors import OutputError, UsageError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def models(jobs):
    return [job.model for job in jobs]


# -- which models ---------------------------------------------------------------------------------------------------


def test_a_tree_is_mirrored_in_a_fixed_order(tmp_path):
    touch(tmp_path / "zoo", "b.onnx", "a/x.ONNX", "a/模型 один.onnx", "a/readme.md", "a/.onnxrep-host-1-0.onnx")
    out = tmp_path / "out"
    jobs = discover.find([str(tmp_path / "zoo")], out)
    assert models(jobs) == ["a/x.ONNX", "a/模型 один.onnx", "b.onnx"]
    assert jobs[0].source == str(tmp_path / "zoo/a/x.ONNX")


def test_files_patterns_and_filters(tmp_path, monkeypatch):
    touch(tmp_path, "zoo/a/x.onnx", "zoo/a/y.onnx", "zoo/b/deep/z.onnx", "model.bin")
    monkeypatch.chdir(tmp_path)
    assert models(discover.find(["model.bin", "zoo/a/x.onnx"], None)) == ["model.bin", "x.onnx"]
    assert models(discover.find(["zoo/**/*.onnx"], None)) == ["a/x.onnx", "a/y.onnx", "b/deep/z.onnx"]
    assert models(discover.find(["zoo/*"], None)) == ["a/x.onnx", "a/y.onnx", "b/deep/z.onnx"]
    assert models(discover.find(["zoo"], None, include=["a/*", "*z*"])) == ["a/x.onnx", "a/y.onnx", "b/deep/z.onnx"]
    assert models(discover.find(["zoo"], None, include=["a/*"], exclude=["*/x.onnx"])) == ["a/y.onnx"]


def test_the_output_folder_is_not_searched(tmp_path):
    touch(tmp_path, "zoo/x.onnx", "zoo/out/x.onnx", "zoo/out/deep/y.onnx")
    assert models(discover.find([str(tmp_path / "zoo")], tmp_path / "zoo/out")) == ["x.onnx"]
    assert models(discover.find([str(tmp_path / "zoo/**/*.onnx")], tmp_path / "zoo/out")) == ["x.onnx"]
    touch(tmp_path, "zoo/a/b/z.onnx")
    assert models(discover.find([str(tmp_path / "zoo/a")], tmp_path / "zoo")) == ["b/z.onnx"]


def test_links_to_folders_are_not_followed(tmp_path):
    touch(tmp_path, "zoo/a/x.onnx")
    (tmp_path / "zoo/a/loop").symlink_to(tmp_path / "zoo")
    assert models(discover.find([str(tmp_path / "zoo")], None)) == ["a/x.onnx"]


def test_what_cannot_be_meant(tmp_path):
    touch(tmp_path, "one/x.onnx", "two/x.onnx", "three/x.onnx/y.onnx")
    one, two, three, out = (str(tmp_path / n) for n in ("one", "two", "three", "out"))
    with pytest.raises(UsageError, match="the same place"):
        discover.find([one, two], tmp_path / out)
    with pytest.raises(UsageError, match="is an input"):
        discover.find([one], tmp_path / "one")
    with pytest.raises(UsageError, match="is an input"):
        discover.find([two, str(tmp_path / "two/x.onnx")], tmp_path / "two/../two")
    with pytest.raises(UsageError, match="needs a folder where"):
        discover.find([one, three], tmp_path / out)
    with pytest.raises(UsageError, match="no such file"):
        discover.find([str(tmp_path / "nowhere")], None)
    with pytest.raises(UsageError, match="matches no file"):
        discover.find([str(tmp_path / "*.onnx")], None)
    assert models(discover.find([one, one + "/"], None)) == ["x.onnx"]


def refuse(monkeypatch, folder):
    """Let the system refuse to list a folder (to root, it would not)."""
    real = os.scandir

    def scandir(path):
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


def test_a_folder_that_cannot_be_searched_is_a_failure_of_its_own(tmp_path, monkeypatch):
    touch(tmp_path / "zoo", "a/x.onnx", "b/y.onnx")
    refuse(monkeypatch, tmp_path / "zoo/a")
    zoo, out = str(tmp_path / "zoo"), tmp_path / "out"
    fault, job = discover.find([zoo], out, include=["*y*"])
    assert (fault.model, fault.fault, job.model) == ("a/", "cannot be searched (Permission denied)", "b/y.onnx")
    assert models(discover.find([zoo], out, exclude=["a/*"])) == ["b/y.onnx"]
    assert models(discover.find([f"{zoo}/a"], out)) == ["a/"]


def test_results_at_a_file_url_are_not_searched(tmp_path):
    touch(tmp_path, "zoo/x.onnx", "zoo/out/x.onnx")
    for given in (str(tmp_path / "zoo"), f"file://{tmp_path}/zoo"):
        for out in (tmp_path / "zoo/out", f"file://{tmp_path}/zoo/out"):
            assert models(discover.find([given], out)) == ["x.onnx"]


def test_names_that_differ_in_case_alone(tmp_path):
    touch(tmp_path, "m.onnx", "m.ONNX", "M.onnx", "n.onnx")
    jobs = discover.find([str(tmp_path)], None)
    assert len(jobs) == len(list(tmp_path.iterdir()))  # fewer where the file system does not tell case
    assert {job.group for job in jobs} == {"m", "n"}
    with pytest.raises(UsageError, match="does not tell case"):
        runner._check_spelling([discover.Job("m.onnx", "a"), discover.Job("M.onnx", "b")])


# -- the journal ----------------------------------------------------------------------------------------------------


def test_the_newest_record_counts(tmp_path):
    path = tmp_path / journal.NAME
    with journal.Journal(path) as book:
        book.append({"model": "a\n模.onnx", "status": "oom", "report": {"folds": []}})
        book.append({"model": "b.onnx", "status": "folded"})
    with journal.Journal(path) as book:
        book.append({"model": "a\n模.onnx", "status": "folded"})
    assert len(path.read_bytes().splitlines()) == 3
    found = journal.newest(path)
    assert {m: r["status"] for m, r in found.items()} == {"a\n模.onnx": "folded", "b.onnx": "folded"}
    assert not journal.newest(tmp_path / "nowhere")


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_torn_line_costs_one_record(tmp_path, cut):
    path = tmp_path / journal.NAME
    with journal.Journal(path) as book:
        book.append({"model": "a", "status": "folded"})
        book.append({"model": "b", "status": "folded"})
    os.truncate(path, path.stat().st_size - cut)
    with journal.Journal(path) as book:
        book.append({"model": "c", "status": "folded"})
    whole = {"a", "b", "c"} if cut == 1 else {"a", "c"}  # only the newline was lost
    assert set(journal.newest(path)) == whole


def test_records_of_another_schema_do_not_count(tmp_path):
    path = tmp_path / journal.NAME
    lines = [
        {"schema": 999, "model": "a"},
        {"schema": journal.SCHEMA},
        ["model"],
        {"schema": journal.SCHEMA, "model": "b"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert set(journal.newest(path)) == {"b"}


def test_a_journal_that_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match="cannot be opened"):
        journal.Journal(tmp_path / "nowhere" / journal.NAME)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OutputError, match="cannot be opened"):
        journal.Journal(tmp_path / "link")
    assert not (tmp_path / "target").exists()
    if Path("/dev/full").exists():
        with journal.Journal(tmp_path / "book") as book:
            full = os.open("/dev/full", os.O_WRONLY)
            os.dup2(full, book._handle)
            os.close(full)
            with pytest.raises(OutputError, match="not written"):
                book.append({"model": "a"})
