"""Memory that was freed is used again, where the C library can be told so."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from onnxrep import allocator
print(allocator.keep_freed())
def taken():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        [bytearray(b"1") * (24 << 20) for _ in range(4)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
taken()
print(taken())
"""


def faults(**environment):
    """Return whether anything was said, and how many faults it takes to have and free four times 24 MiB."""
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, env=environment)
    said, count = run.stdout.split()
    return said == "True", int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone has the parameters")
def test_freed_memory_is_used_again():
    said, count = faults()
    assert said
    assert count < 100 < faults(MALLOC_TOP_PAD_="131072")[1]


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_ARENA_MAX"])
def test_what_the_environment_says_stays(name):
    assert not faults(**{name: "glibc.malloc.check=0" if name == "GLIBC_TUNABLES" else "2"})[0]


def test_another_c_library_is_left_alone(monkeypatch):
    import ctypes

    from onnxrep import allocator

    def library(name):
        raise OSError(name)

    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(ctypes, "CDLL", library)
    assert not allocator.keep_freed()
