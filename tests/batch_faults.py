"""A zoo of 500 models with 40 faulty files: done in one run, and done in many that are killed at random moments.

    python -m tests.batch_faults [--models 500] [--faulty 40] [--kills 25] [--seed 0]

``make batch-faults`` runs it. The second way must end in the same statuses and the same files, byte for byte.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from models import faulty
from onnxrep.batch import journal
from tests.processes import Started, files

LIMIT = 20


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def expected_statuses(zoo: Path, models: int, count: int) -> dict[str, str]:
    """Write the zoo; return relative path -> status."""
    return {model: what["status"] for model, what in faulty.write(zoo, models, count).items()}


def found(out: Path) -> dict[str, str]:
    """Relative path -> status of the newest records."""
    return {model: record["status"] for model, record in journal.newest(out / journal.NAME).items()}


def say_differences(wanted: dict[str, str], got: dict[str, str]) -> int:
    """Print models whose status is not what it should be; return their number."""
    wrong = [m for m in wanted.keys() | got.keys() if wanted.get(m) != got.get(m)]
    for model in sorted(wrong):
        say(f"  {model}: {wanted.get(model)} expected, {got.get(model)} found")
    return len(wrong)


def one_run(zoo: Path, out: Path, expected: dict[str, str]) -> int:
    """Run the batch once, undisturbed; return the number of things that are wrong."""
    start = time.monotonic()
    with Started(zoo, out, "--jobs", "2", "--timeout", str(LIMIT)) as run:
        run.process.communicate()
        code = run.process.returncode
    seconds = time.monotonic() - start
    counts = ", ".join(f"{n} {status}" for status, n in sorted(Counter(found(out).values()).items()))
    say(f"one run: {seconds:.0f} s, exit code {code}, {counts}")
    good = {model for model, status in expected.items() if status in ("folded", "unchanged")}
    stray = set(files(out)) ^ good
    for name in sorted(stray):
        say(f"  {name}: {'missing' if name in good else 'should not be there'}")
    return (code != 1) + len(stray) + say_differences(expected, found(out))


def kill_something(run: Started, rng: random.Random) -> str:
    """Kill the parent, a server or a child; return which."""
    others = [process for process in run.alive() if process != run.process.pid]
    if not others or rng.random() < 0.4:
        run.process.kill()
        run.process.communicate()
        return "parent"
    try:
        os.kill(rng.choice(others), signal.SIGKILL)
    except ProcessLookupError:
        return "nobody"
    return "server or child"


def many_runs(zoo: Path, out: Path, kills: int, rng: random.Random) -> tuple[int, Counter[str]]:
    """Run the batch with kills at random moments, and again until it is done; return runs and what was killed."""
    runs, killed = 0, Counter()
    while True:
        runs += 1
        with Started(zoo, out, "--jobs", "2", "--timeout", str(LIMIT)) as run:
            while killed.total() < kills and run.process.poll() is None:
                try:
                    run.process.communicate(timeout=rng.uniform(0.2, 4.0))
                except subprocess.TimeoutExpired:
                    killed[kill_something(run, rng)] += 1
            if run.process.returncode is None:
                run.process.communicate()
            code = run.process.returncode
        assert run.gone(), "a process outlived its parent"
        if code == 1 and killed.total() >= kills:
            return runs, killed


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="A zoo with faulty files, killed and resumed")
    parser.add_argument("--models", type=int, default=500)
    parser.add_argument("--faulty", type=int, default=40)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        zoo, calm, wild = (Path(folder, name) for name in ("in", "calm", "wild"))
        expected = expected_statuses(zoo, arguments.models, arguments.faulty)
        wrong = one_run(zoo, calm, expected)
        start = time.monotonic()
        runs, killed = many_runs(zoo, wild, arguments.kills, random.Random(arguments.seed))
        seconds = time.monotonic() - start
        victims = ", ".join(f"{count} x {who}" for who, count in killed.items())
        say(f"killed and resumed: {seconds:.0f} s, {runs} runs; killed: {victims}")
        wrong += say_differences(found(calm), found(wild))
        differing = {name for name, _ in files(calm).items() ^ files(wild).items()}
        for name in sorted(differing):
            say(f"  {name}: differs")
    say("all as expected, and the same both ways" if not wrong and not differing else "NOT as expected")
    sys.exit(bool(wrong or differing))


if __name__ == "__main__":
    main()
