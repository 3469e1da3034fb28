"""What certainty costs: the proof of single folds, and the end-to-end check beside folding alone.

``make bench`` prints the tables. Times are medians of runs in turn; compare them within one table only.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from statistics import median
from typing import Any
from unittest import mock

import onnx

from models import skeletons
from models.net import Net
from onnxrep import folding, optimize
from onnxrep.options import Options
from onnxrep.proof.certificate import Certificate, Claim, certify
from onnxrep.proof.sessions import Session

MODELS = (
    "sg_qarepvgg_alpha/train_dynamic_bn",
    "repghostnet_050/train_dynamic",
    "mobileone_s0/train_dynamo_dynamic",
    "repvgg_a0/train_legacy_bn",
    "hf_rtdetr_r18/train_dynamo",
)
REPEATS = 3


def blocks(width: int, count: int = 1) -> onnx.ModelProto:
    """Return a chain of blocks ``Relu(BN(C3) + BN(C1) + BN(x))`` for images of any size."""
    net = Net(0)
    x = net.input(("batch", width, "height", "width"))
    for _ in range(count):
        x = net.relu(net.add(net.conv_bn(x, width, 3), net.conv_bn(x, width, 1), net.bn(x)))
    return net.model(x)


def proof_seconds(model: onnx.ModelProto) -> tuple[float, str]:
    """Return the median time that the proofs of a model's folds take, and how they were made."""
    times: list[float] = []
    kinds: list[str] = []

    def timed(claims: Sequence[Claim]) -> list[Certificate]:
        start = time.perf_counter()
        found = certify(claims)
        times[-1] += time.perf_counter() - start
        kinds.extend(c.probes for c in found)
        return found

    with mock.patch.object(folding, "certify", timed):
        for _ in range(REPEATS):
            times.append(0.0)
            folding.fold(onnx.ModelProto.FromString(model.SerializeToString()), None)
    return median(times), max(set(kinds), key=kinds.count)


def seconds(model: onnx.ModelProto, options: Options) -> tuple[float, float]:
    """Return the time of optimizing a model, and that in which inferences run, one or several at once."""
    inferences, running, since = 0.0, 0, 0.0
    real, lock = Session.run, threading.Lock()

    def timed(self: Session, *arguments: Any) -> dict[str, Any]:
        nonlocal inferences, running, since
        with lock:
            running += 1
            since = time.perf_counter() if running == 1 else since
        try:
            return real(self, *arguments)
        finally:
            with lock:
                running -= 1
                inferences += 0.0 if running else time.perf_counter() - since

    start = time.perf_counter()
    with mock.patch.object(Session, "run", timed):
        optimize(model, options=options)
    return time.perf_counter() - start, inferences


def main() -> int:
    """Print both tables."""
    write = sys.stdout.write
    write("proof of the folds                       seconds   impulses\n")
    for name, width, count in (
        ("one block, 16 channels", 16, 1),
        ("one block, 64 channels", 64, 1),
        ("one block, 256 channels", 256, 1),
        ("one block, 512 channels", 512, 1),
        ("100 blocks, 16 channels", 16, 100),
        ("100 blocks, 64 channels", 64, 100),
    ):
        spent, kind = proof_seconds(blocks(width, count))
        write(f"{name:40}{spent:8.2f}   {kind}\n")
        sys.stdout.flush()
    write(
        "\noptimize, seconds                  no check    checked  inferences   checked / (3 x no check + inferences)\n"
    )
    for name in MODELS:
        model = skeletons.fill(name)
        plain, checked, ran = [], [], []
        for _ in range(REPEATS):
            plain.append(seconds(model, Options(verify=False))[0])
            whole, inferences = seconds(model, Options())
            checked.append(whole)
            ran.append(inferences)
        folded, all_, runs = map(median, (plain, checked, ran))
        write(f"{name:36}{folded:7.2f}{all_:11.2f}{runs:12.2f}{all_ / (3 * folded + runs):10.2f}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
