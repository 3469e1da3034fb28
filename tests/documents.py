"""The commands and examples in the documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
GENERATED = {"blocks.md"}


@dataclass(frozen=True)
class Block:
    """A piece of a document: where it is, its language, and its text."""

    file: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """Where it is."""
        return f"{self.file}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Its shell commands, comments and prompts left out, continued lines joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if any(line.startswith("$ ") for line in lines):
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        return [found for line in lines if (found := line.split(" # ")[0].strip()) and not found.startswith("#")]


def documents() -> list[Path]:
    """Everything that people read and that is written by hand."""
    pages = [p for p in sorted((ROOT / "docs").rglob("*.md")) if p.name not in GENERATED and "decisions" not in p.parts]
    return [ROOT / "README.md", *sorted(ROOT.glob("CONTRIBUTING.md")), *pages]


def fenced(path: Path) -> Iterator[Block]:
    """The fenced blocks of a document."""
    language, start, lines = None, 0, []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fence = re.match(r"\s*```(\S*)", line)
        if fence and language is None:
            language, start, lines = fence[1], number, []
        elif fence:
            yield Block(str(path.relative_to(ROOT)), start, str(language), "\n".join(lines))
            language = None
        else:
            lines.append(line)


def indented(path: Path) -> Iterator[Block]:
    """Commands in indented blocks of a document: lines that begin with a command of ours or with make."""
    inside = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            inside = not inside
        found = re.match(r" {4}(?:\$ )?((?:onnxrep|make|pip) .*)", line)
        if found and not inside:
            text = re.split(r"\s{2,}", found[1])[0]
            yield Block(str(path.relative_to(ROOT)), number, "sh", text)
