"""Damaged models through the command line: each must end in time, with a known exit code and without a traceback.

``make fuzz-reader`` damages some models many times (bits flipped, cut off, parts of one file put into another) and
prints what went wrong. Native crashes inside onnx or ONNX Runtime are counted apart.
"""

from __future__ import annotations

import argparse
import collections
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from models.blocks import seed_blocks
from tests.test_files import with_untouched

CHILD = """
import io, sys, contextlib, faulthandler
from onnxrep.cli import main
faulthandler.enable()
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    command, path = line.rstrip("\\n").split(" ", 1)
    extra = ["--no-verify", "-o", path + ".out"] if command == "optimize" else []
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([command, path, *extra])
    print(code, repr(err.getvalue()), flush=True)
"""


def seeds(folder: Path) -> list[bytes]:
    """Return the bytes of valid models."""
    found = [block.model().SerializeToString() for block in seed_blocks()]
    found.append(with_untouched(folder).read_bytes())
    return found


def damaged(models: Sequence[bytes], rng: random.Random) -> bytes:
    """Return one model with some damage."""
    data = bytearray(rng.choice(models))
    kind = rng.choice(("bits", "bytes", "cut", "splice", "repeat", "many bits"))
    at = rng.randrange(len(data))
    if kind in ("bits", "many bits"):
        for _ in range(1 if kind == "bits" else rng.randrange(2, 20)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        data[at : at + 8] = rng.randbytes(rng.randrange(9))
    elif kind == "cut":
        del data[at:]
    elif kind == "splice":
        other = rng.choice(models)
        start = rng.randrange(len(other))
        data[at : at + rng.randrange(64)] = other[start : start + rng.randrange(64)]
    else:
        data[at:at] = data[at : at + rng.randrange(64)]
    return bytes(data)


def answers(folder: Path, cases: Iterator[tuple[str, Path]]) -> Iterator[tuple[str, Path, str]]:
    """Yield what children answer; each serves many models, and a new one starts where one dies."""
    child = None
    for command, path in cases:
        if child is None:
            child = subprocess.Popen(
                ["timeout", "600", sys.executable, "-c", CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=folder,
            )
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(f"{command} {path}\n")
        child.stdin.flush()
        line = child.stdout.readline()
        if not line:
            assert child.stderr is not None
            line = f"died: {child.wait()} {child.stderr.read()[-400:]!r}"
            child = None
        yield command, path, line.strip()
    if child is not None:
        child.communicate()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign; return 1 if something is to be mended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="where models go that make trouble")
    options = parser.parse_args(arguments)
    tally: collections.Counter[str] = collections.Counter()
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = seeds(folder / "seeds")
        work = folder / "seeds"

        def cases() -> Iterator[tuple[str, Path]]:
            for seed in range(options.start, options.start + options.count):
                path = work / f"{seed}.onnx"
                path.write_bytes(damaged(models, random.Random(seed)))
                yield ("optimize" if seed % 2 else "inspect"), path

        for command, path, line in answers(folder, cases()):
            kind = line.split(" ")[0]
            trouble = kind not in ("0", "1", "2") or "internal error" in line or "Traceback" in line
            tally[f"{command} {kind}"] += 1
            if trouble:
                bad += 1
                sys.stdout.write(f"{path.name}: {command}: {line[:600]}\n")
                sys.stdout.flush()
                if options.keep:
                    (options.keep / path.name).write_bytes(path.read_bytes())
            for left in work.glob(f"{path.name}*"):
                left.unlink()
    sys.stdout.write(f"{dict(sorted(tally.items()))}\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
