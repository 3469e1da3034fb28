"""The generated pages: pictures, the command line from its parser, the reasons from their table."""

from __future__ import annotations

import argparse
import re

import mkdocs_gen_files

from docs.pictures import PICTURES, draw
from onnxrep import cli, reasons


def escape(text: str) -> str:
    """Return text for a cell of a table."""
    for character in "\\|*_<>":
        text = text.replace(character, f"\\{character}")
    return text


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return name -> parser of the commands."""
    (found,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(found.choices)


def row(action: argparse.Action) -> str:
    """Return one row of a table of options."""
    word = action.metavar or action.dest.upper()
    word = " ".join(word) if isinstance(word, tuple) else word
    if action.choices is not None:
        word = "{" + ",".join(map(str, action.choices)) + "}"
    taking = "" if action.nargs == 0 else f" {word}"
    names = [f"`{name}{taking}`" for name in action.option_strings] or [f"`{word}`"]
    text = (action.help or "") % {"default": action.default}
    return f"| {', '.join(names)} | {escape(text)} |"


def command_line() -> str:
    """Return the page of the command line."""
    parser = cli.parser()
    lines = [
        "# Command line",
        "",
        parser.description or "",
        "",
        f"{(parser.epilog or '').capitalize()}.",
        "",
        "Results go to stdout, progress and errors to stderr. Generated from the parser.",
        "",
    ]
    for name, command in commands(parser).items():
        usage = re.sub(r"\s+", " ", command.format_usage().removeprefix("usage: ")).strip()
        lines += [f"## onnxrep {name}", "", f"{(command.description or '').strip().capitalize()}.", ""]
        lines += ["```text", *_wrapped(usage), "```", ""]
        shown = [a for a in command._actions if a.help != argparse.SUPPRESS]
        lines += ["| argument | meaning |", "|---|---|", *map(row, shown), ""]
        if command.epilog:
            lines += [command.epilog, ""]
    return "\n".join(lines)


def _wrapped(usage: str, width: int = 96) -> list[str]:
    """Break a usage between its bracketed options."""
    lines = [""]
    for word in re.findall(r"\[[^\]]*\]|\S+", usage):
        if len(lines[-1]) + len(word) > width:
            lines.append("   ")
        lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return lines


def table_of_reasons() -> str:
    """Return the page of the reasons."""
    lines = [
        "# Reasons",
        "",
        "`onnxrep inspect` and the report give each refusal one of these codes, with the node and a detail. "
        "They are stable: scripts may rely on them. Generated from `onnxrep/reasons.py`.",
        "",
        "| code | what it says | what to do |",
        "|---|---|---|",
        *(
            f"| `{c}` | {escape(t)} | {escape(reasons.REMEDIES.get(c, ''))} |"
            for c, t in sorted(reasons.REASONS.items())
        ),
        "",
        "An op that has nothing to do with folding gets no reason. A reason is for what was close.",
        "",
        "What is stored as integers stays so. A weight behind a DequantizeLinear is never merged, because the result "
        "would be a float weight where the model was made small on purpose. A QuantizeLinear on data is "
        "a boundary.",
        "",
        "Which published block gets which reason stands in [the catalogue of blocks](../blocks.md).",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Write the generated files of the site."""
    for path, text in (("reference/cli.md", command_line()), ("reference/reasons.md", table_of_reasons())):
        with mkdocs_gen_files.open(path, "w") as page:
            page.write(text)
    for name in PICTURES:
        for scheme in ("light", "dark"):
            with mkdocs_gen_files.open(f"pictures/{name}-{scheme}.svg", "wb") as file:
                file.write(draw(name, scheme))


if __name__ == "<run_path>":
    main()
