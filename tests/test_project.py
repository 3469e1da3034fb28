"""The files around the package agree with it, and with each other."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import onnxrep

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
KINDS = {kind["directory"] for kind in PROJECT["tool"]["towncrier"]["type"]}


def test_fragments_of_the_changelog_are_named_and_written_as_they_should():
    ignored = PROJECT["tool"]["towncrier"]["ignore"]
    for path in (ROOT / "changelog.d").iterdir():
        if path.name not in ignored:
            assert re.fullmatch(rf"[a-z0-9-]+\.({'|'.join(KINDS)})\.md", path.name), path.name
            assert path.read_text().strip().endswith("."), path.name


def test_the_changelog_can_be_made():
    command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "9.9.9"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("## 9.9.9")


def test_the_citation_names_this_version():
    assert f"version: {onnxrep.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_workflow_runs_on_every_python_that_is_promised():
    promised = re.findall(r"Python :: (3\.\d+)'", str(PROJECT["project"]["classifiers"]))
    matrix = re.search(r"python: \[(.*)\]", (ROOT / ".github/workflows/test.yml").read_text())
    assert matrix
    assert re.findall(r"3\.\d+", matrix[1]) == promised


@pytest.mark.parametrize("folder", ["docs/decisions"])
def test_every_decision_is_in_the_list(folder):
    listed = re.findall(r"\((\d{4}-[\w-]+\.md)\)", (ROOT / folder / "index.md").read_text())
    assert listed == sorted(p.name for p in (ROOT / folder).glob("[0-9]*.md"))


def test_what_contributing_names_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = [p for p in re.findall(r"`([\w./]+/[\w./]*)`", text) if "*" not in p]
    assert len(paths) > 15
    assert [p for p in paths if not p.startswith(".venv") and not (ROOT / p).exists()] == []
    code = "".join(p.read_text() for folder in ("onnxrep", "tests") for p in (ROOT / folder).rglob("*.py"))
    names = re.findall(r"`(_?[a-z]+_[a-z_]+)`|`([A-Z][a-z]+|OPS|FOLLOWED)`", text)
    assert len(names) > 5
    for name in filter(None, (n for pair in names for n in pair)):
        assert re.search(rf"(def|class) {name}\b|^{name}\b", code, re.MULTILINE), name
