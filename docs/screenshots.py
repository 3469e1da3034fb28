"""Write the pictures of the documentation: both pages, and the terminal (``make screenshots``).

    python -m docs.screenshots [FOLDER]

Needs Chromium. The models are skeletons of the zoo, filled with the same weights everywhere.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from models import skeletons
from onnxrep import BatchOptions, Options, optimize, run_batch
from onnxrep.batch import pages
from onnxrep.report import page, text

if TYPE_CHECKING:
    from playwright.sync_api import Browser

IMAGES = Path(__file__).parent / "images"
MODEL = "repvgg_a0/train_legacy_bn"
ZOO = (
    "mmyolo_repvgg_alpha/train_legacy",
    "mobileone_s0/train_dynamic",
    "repghostnet_050/train_legacy",
    "span_x2_f48/train_legacy",
    "mmpose_rep_dil2/train_legacy",
    "mmpose_rep_branchnorm/train_legacy",
    "vit_tiny_patch16_224/train_legacy",
)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


def chromium() -> str | None:
    """Return the path of a Chromium of this machine, or None."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


def shoot(browser: Browser, source: Path, target: Path, size: tuple[int, int], *, dark: bool = False) -> None:
    """Write a picture of a page in a window of some size."""
    window = {"width": size[0], "height": size[1]}
    view = browser.new_page(viewport=window, color_scheme="dark" if dark else "light")  # type: ignore[arg-type]
    view.goto(source.as_uri())
    view.screenshot(path=target)
    view.close()


def terminal(model: Path, target: Path) -> None:
    """Write what the terminal shows of a model."""
    from rich.console import Console

    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, file=nowhere, width=110, force_terminal=True)
        console.print(f"$ onnxrep optimize {model.name}", highlight=False, style="bold")
        report = optimize(model, model.with_suffix(".rep.onnx"), Options()).report
        text.show(report, console)
    drawn = console.export_svg(title="onnxrep")
    shown = re.escape(f"{model.parent}/")
    drawn = re.sub(rf' textLength="[0-9.]+"([^>]*>[^<]*){shown}', r"\1", drawn)  # or the rest would be stretched
    drawn = re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL)  # nothing is loaded from elsewhere
    target.write_text(drawn.replace(f"{model.parent}/", ""), "utf-8")


def main() -> None:
    """Write all pictures."""
    from playwright.sync_api import sync_playwright

    images = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    images.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as player:
        folder = Path(name)
        browser = player.chromium.launch(executable_path=chromium(), args=list(ARGUMENTS))
        model = folder / "repvgg_a0.onnx"
        onnx.save(skeletons.fill(MODEL), model)
        report = optimize(model, folder / "repvgg_a0.rep.onnx", Options(bench=True)).report
        one = folder / "report.html"
        one.write_text(page.model(report), "utf-8")
        shoot(browser, one, images / "report.png", (1080, 1330))
        shoot(browser, one, images / "report-dark.png", (1080, 1330), dark=True)
        terminal(model, images / "terminal.svg")
        zoo = folder / "zoo"
        zoo.mkdir()
        for each in ZOO:
            onnx.save(skeletons.fill(each), zoo / f"{each.partition('/')[0]}.onnx")
        (zoo / "download-that-broke-off.onnx").write_bytes(model.read_bytes()[:100_000])
        (zoo / "empty.onnx").touch()
        run_batch([zoo], folder / "out", BatchOptions(timeout=60))
        shoot(browser, pages.write(folder / "out"), images / "zoo.png", (1320, 760))
        browser.close()


if __name__ == "__main__":
    main()
