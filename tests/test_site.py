"""The built site of documents asks nothing of the network, and nothing in it is missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.documents import ROOT

pytest.importorskip("mkdocs")

LOADED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*?\bsrc=\"([^\"]+)\"|<link\b[^>]*?\bhref=\"([^\"]+)\"")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_all_that_a_page_loads_is_in_the_site(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        loaded = [a or b for a, b in LOADED.findall(page.read_text())]
        assert len(loaded) > 3
        for target in loaded:
            assert not re.match(r"(?:https?:)?//", target), f"{page.name} loads {target}"
            if not target.startswith("data:"):
                root = site if target.startswith("/") else page.parent  # 404.html counts from the root of the site
                assert (root / re.split("[?#]", target)[0].lstrip("/")).exists(), f"{page.name}: {target}"


def test_no_style_loads_from_elsewhere(site):
    styles = sorted(site.rglob("*.css"))
    assert styles
    for style in styles:
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text()), style.name
