"""Pages in a real browser: what they show, that they load nothing, that everybody can read and use them."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import re
import threading
from html.parser import HTMLParser

import onnx
import pytest

from docs.screenshots import ARGUMENTS, chromium
from models.blocks import seed_blocks
from models.net import Net
from onnxrep import BatchOptions, inspect, optimize, run_batch
from onnxrep.batch import pages
from onnxrep.report import page, reading, records
from onnxrep.report.page import Row
from tests.test_cli import call

HOSTILE = "<script>alert(1)</script>\"'&{{ 7*7 }}${x}$\u202e\u200f\x1b[31m\x00" + "long" * 300

BAD_CONTRAST = """() => {
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$/.test(c)) return c; } return getComputedStyle(document.documentElement).colorScheme; };
  const bad = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = Array.from(e.childNodes).some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || ["TITLE", "DESC", "SCRIPT"].includes(e.tagName.toUpperCase())) continue;
    const style = getComputedStyle(e), ink = e.closest("svg") ? style.fill : style.color;
    const [a, b] = [light(ink), light(behind(e.closest("svg") || e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) bad.push([e.tagName, e.textContent.slice(0, 40), ink]);
  }
  return bad; }"""

UNFIT = """() => {
  const bad = [], levels = Array.from(document.querySelectorAll("h1,h2,h3,h4"), h => Number(h.tagName[1]));
  if (!document.documentElement.lang) bad.push("no lang");
  if (levels[0] !== 1 || levels.some((l, i) => i && l > levels[i - 1] + 1)) bad.push("headings " + levels);
  for (const t of document.querySelectorAll("th")) if (!t.scope) bad.push("th without scope");
  for (const i of document.querySelectorAll("img")) if (!i.alt) bad.push("img without alt");
  for (const s of document.querySelectorAll("svg"))
    if (s.getAttribute("role") !== "img" || s.getAttribute("aria-labelledby").split(" ")
        .some(id => !document.getElementById(id)?.textContent)) bad.push("svg without words");
  const ids = Array.from(document.querySelectorAll("[id]"), e => e.id);
  if (new Set(ids).size !== ids.length) bad.push("an id twice");
  for (const i of document.querySelectorAll("input,select")) if (!i.labels.length) bad.push("no label");
  return bad; }"""


@pytest.fixture(scope="module")
def browser():
    path = chromium()
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium on this machine; .ci/run installs it")
        pytest.skip("no Chromium on this machine: install it to try the pages")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        found = player.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield found
        found.close()


@pytest.fixture(scope="module")
def report():
    model = next(iter(seed_blocks())).model()
    return optimize(model).report


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A batch with every kind of row: its page."""
    root = tmp_path_factory.mktemp("zoo")
    (root / "in" / "deeper").mkdir(parents=True)
    for seed in range(2):
        net = Net(seed)
        x = net.input((1, 4, 8, 8))
        model = net.model(net.relu(net.add(net.conv_bn(x, 4, 3), net.conv_bn(x, 4, 1))))
        onnx.save(model, root / "in" / ("deeper" if seed else "") / f"b{seed} <b>&'.onnx")
    net = Net(9)
    onnx.save(net.model(net.relu(net.input((1, 4, 8, 8)))), root / "in" / "a plain.onnx")
    (root / "in" / "c empty.onnx").touch()
    run_batch([root / "in"], root / "out", BatchOptions(jobs=1, threads=1, timeout=60))
    return pages.write(root / "out")


@pytest.fixture
def look(browser, tmp_path):
    """Open a page; that nothing is said on its console and nothing is asked from a network is checked at the end."""
    said, asked, views = [], [], []

    def opened(content, **settings):
        view = browser.new_page(**settings)
        view.on("console", lambda message: said.append(message.text))
        view.on("pageerror", lambda error: said.append(str(error)))
        view.on("dialog", lambda dialog: said.append(dialog.message))
        view.on("request", lambda request: asked.append(request.url))
        if isinstance(content, str):
            path = tmp_path / f"{len(views)}.html"
            path.write_text(content, "utf-8")
        else:
            path = content
        views.append(view)
        view.goto(path.as_uri())
        return view

    yield opened
    for view in views:
        view.close()
    assert not said
    assert all(url.startswith(("file:", "data:")) for url in asked)


TUNING = records.Tuning(
    (
        records.Decision("first", "left", {"left": 1e-3, "folded": 1.2e-3}, 1.0, cached=False),
        records.Decision("second", "folded", {"left": 2e-3, "folded": 1e-3, "partial": 3e-3}, 2.0, cached=True),
    ),
    dropped=False,
    provider="cpu",
    threads=1,
    processor="a CPU",
)


def hostile(report: records.Report) -> records.Report:
    """A report in which everything that comes from a model or a file says something evil."""

    def evil(value):
        if isinstance(value, str):
            return HOSTILE
        if isinstance(value, dict):
            return {HOSTILE + k: evil(v) for k, v in value.items()}
        if isinstance(value, tuple):
            return tuple(map(evil, value))
        if dataclasses.is_dataclass(value):
            same = ("status", "verdict", "kind", "code", "choice", "note")
            names = [f.name for f in dataclasses.fields(value) if f.name not in same]
            return dataclasses.replace(value, **{n: evil(getattr(value, n)) for n in names})
        return value

    node = records.Node("n", "Conv")
    refusals = (records.Refusal(node, "s", "price", "m", "d"),)
    return evil(dataclasses.replace(report, refusals=refusals, status="folded", tuning=TUNING))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["model", "hostile", "zoo"])
def test_everybody_can_read_it(look, report, zoo, which, scheme):
    content = zoo if which == "zoo" else page.model(hostile(report) if which == "hostile" else report)
    view = look(content, color_scheme=scheme, viewport={"width": 360, "height": 740})
    view.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert view.evaluate("document.documentElement.scrollWidth") == 360
    assert view.evaluate(UNFIT) == []
    assert view.evaluate(BAD_CONTRAST) == []
    dark = view.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    assert dark == (scheme == "dark")


def test_a_page_says_what_happened(look, report):
    view = look(page.model(report))
    assert view.inner_text("h1") == "Model in memory"
    assert view.inner_text(".verdict strong") == "Folded and verified"
    text = view.inner_text("main")
    assert "Convolutions\n2 → 1" in text
    assert "1 \N{MULTIPLICATION SIGN} parallel branches became one" in text
    titles = view.eval_on_selector_all("svg title", "all => all.map(t => t.textContent)")
    assert titles == ["Before", "After", "Taps of the merged kernel", "Error of both models against the reference"]
    boxes = view.eval_on_selector_all("svg:first-of-type text", "all => all.map(t => t.textContent)")
    assert boxes.count("BatchNorm") == 3
    assert boxes.count("Add") == 2


def test_pages_run_nothing_that_a_model_says(look, report):
    evil = hostile(report)
    row = Row(HOSTILE, "folded", HOSTILE, 1.0, "onnxrep-reports/x.html", evil)
    check = evil.verification
    for content in (page.model(evil), page.zoo([row]), page.verification(check, HOSTILE, HOSTILE, {HOSTILE: HOSTILE})):
        view = look(content)
        scripts = view.eval_on_selector_all("script", "all => all.map(s => s.textContent)")
        assert all("alert" not in s for s in scripts)
        assert "49" not in view.title()
        assert "<script>alert(1)</script>" in view.inner_text("main")
        assert not re.search("[\x00-\x08\x0b-\x1f\u202e\u200f]", content)


def test_every_verdict_has_its_words(look, report):
    def told(**changes):
        return look(page.model(dataclasses.replace(report, **changes))).inner_text(".verdict")

    why = dataclasses.replace(report.verification, verdict="rejected", reason="they differ")
    assert "they differ" in told(status="rejected", verification=why)
    assert "Nothing was written" in told(status="rejected", verification=why)
    assert "could not decide" in told(status="unverified", verification=why)
    assert "not verified" in told(verification=None)
    assert "Nothing to fold" in told(status="unchanged", folds=(), verification=None)
    planned = page.model(dataclasses.replace(report, verification=None), planned=True)
    assert "Can be folded" in look(planned).inner_text(".verdict")
    timing = records.Timing("", 2e-3, 1.9e-3, 2.2e-3, {}, {})
    ratio = records.Comparison("faster", 1.5, (1.4, 1.6), 0.95, timing, timing, 9, 1, 1, {}, False, "cpu", 1, "a CPU")
    assert "1.50 times as fast" in look(page.model(dataclasses.replace(report, latency=ratio))).inner_text("main")


def test_a_page_says_what_was_timed(look, report):
    def told(**changes):
        tuning = dataclasses.replace(TUNING, **changes)
        return look(page.model(dataclasses.replace(report, tuning=tuning))).inner_text("main")

    text = told()
    assert "2 regions for which the price was not clear, each timed by itself on a CPU, cpu, 1 thread" in text
    assert "first\tleft as it was\t1\t1.2\t" in text
    assert "second\tfolded, known from a former run\t2\t1\t3" in text
    assert "given up" not in text
    assert "slower than the original" in told(dropped=True)
    assert "no doubt about any region" in told(decisions=())
    assert "Nothing: no legal input. The price decided." in told(note="no legal input")


def names(view):
    return view.eval_on_selector_all("#zoo tbody tr:not([hidden]) th", "all => all.map(t => t.textContent)")


def test_rows_are_sorted_and_filtered(look, zoo):
    view = look(zoo)
    every = ["a plain.onnx", "b0 <b>&'.onnx", "c empty.onnx", "deeper/b1 <b>&'.onnx"]
    assert names(view) == every
    view.click("th button:text('Model')")
    view.click("th button:text('Model')")
    assert names(view) == every[::-1]
    assert view.get_attribute("th:first-child", "aria-sort") == "descending"
    view.focus("th button:text('Conv')")
    view.keyboard.press("Enter")
    view.keyboard.press("Space")
    assert set(names(view)[:2]) == {every[1], every[3]}
    view.select_option("#status", "folded")
    assert len(names(view)) == 2
    view.fill("#text", "DEEPER")
    assert names(view) == [every[3]]
    assert view.inner_text("#shown") == "1 shown"


def test_without_scripts_everything_is_there(look, zoo):
    view = look(zoo, java_script_enabled=False)
    assert view.locator("#zoo tbody tr").count() == 4
    assert not view.is_visible("#tools")
    assert "empty file" in view.inner_text("#zoo")
    view.click("text=deeper/b1")
    assert view.inner_text("h1") == "b1 <b>&'.onnx"
    view.click("text=All models")
    assert view.inner_text("h1") == "4 models"


# -- without a browser --------------------------------------------------------------------------------------------


class Balance(HTMLParser):
    """Checks that tags are closed in order."""

    VOID = ("meta", "link", "input", "br")

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_pages_are_well_formed(report):
    for content in (page.model(hostile(report)), page.zoo([Row("m", "crashed", "", 0.0)])):
        balance = Balance()
        balance.feed(content)
        assert not balance.open


def test_a_report_is_read_back(report):
    data = json.loads(report.to_json())
    assert reading.report(data) == report
    data["verification"]["outputs"][0]["ratio"] = None
    assert math.isnan(reading.report(data).verification.outputs[0].ratio)
    for fold in data["folds"]:  # as older versions wrote them
        for part in (*fold["removed"], *fold["emitted"]):
            for name in ("inputs", "outputs", "constants", "taps", "attributes"):
                part.pop(name, None)
    assert "parallel branches became one" in page.model(reading.report(data))


def test_many_folds_of_one_structure_have_one_picture():
    net = Net(1)
    x = net.input((1, 4, 8, 8))
    for _ in range(30):
        x = net.relu(net.add(net.conv_bn(x, 4, 3), net.conv_bn(x, 4, 1)))
    content = page.model(inspect(net.model(x)), planned=True)
    assert content.count("<svg") == 3
    assert content.count("Conv") < 300
    assert "30 places" in content
    assert len(content) < 200_000


def test_the_callers_matplotlib_is_left_alone(report):
    import matplotlib as mpl

    pages_ = []
    expected = page.model(report)
    with mpl.rc_context({"svg.fonttype": "path", "axes.grid": True, "font.size": 40, "text.usetex": True}):
        before = dict(mpl.rcParams.items())
        threads = [threading.Thread(target=lambda: pages_.append(page.model(report))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert dict(mpl.rcParams.items()) == before
    assert set(pages_) == {expected}


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_a_missing_package_is_said_before_any_work(capsys, monkeypatch, tmp_path, missing):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == missing else real(name, *a))
    for command in (
        ("optimize", "no such file", "--html", tmp_path / "x.html"),
        ("inspect", "no such file", "--html", tmp_path / "x.html"),
        ("verify", "no such file", "either", "--html", tmp_path / "x.html"),
        ("batch", "no such folder", "-o", tmp_path / "out", "--html"),
    ):
        code, out, err = call(capsys, *command)
        assert (code, out, err) == (2, "", "onnxrep: pages need the extra: pip install 'onnxrep[html]'\n")
    assert not list(tmp_path.iterdir())


def test_commands_write_pages(capsys, tmp_path):
    path, new = tmp_path / "m.onnx", tmp_path / "m.rep.onnx"
    onnx.save(next(iter(seed_blocks())).model(), path)
    for words, title in (
        (("optimize", path), "Folded and verified"),
        (("inspect", path), "Can be folded"),
        (("verify", path, new), "The same function"),
    ):
        target = tmp_path / f"{words[0]}.html"
        code, _, err = call(capsys, *words, "--html", target)
        assert (code, err) == (0, f"page written to {target}\n")
        assert f"<strong>{title}</strong>" in target.read_text()
    code, _, err = call(capsys, "optimize", path, "--html", new)
    assert code == 2
    assert "is a model of this run, or its report" in err


def test_a_resumed_batch_shows_what_stands(capsys, tmp_path):
    (tmp_path / "in").mkdir()
    onnx.save(next(iter(seed_blocks())).model(), tmp_path / "in" / "m.onnx")
    words = ("batch", tmp_path / "in", "-o", tmp_path / "out", "--jobs", 1, "--html")
    for _ in range(2):
        code, _, err = call(capsys, *words)
        assert code == 0
        assert err.splitlines()[-1] == f"page written to {tmp_path / 'out' / pages.NAME}"
        content = (tmp_path / "out" / pages.NAME).read_text()
        assert "2 → 1" in content
        (one,) = (tmp_path / "out" / pages.FOLDER).iterdir()
        assert f'href="{pages.FOLDER}/{one.name}"' in content
        one.unlink()
    assert call(capsys, *words, "--dry-run")[0] == 2
