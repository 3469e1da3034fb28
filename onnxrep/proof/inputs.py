"""Inputs that can see an error: distributions, constants, and sizes at which borders matter."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxrep import files
from onnxrep.errors import UsageError
from onnxrep.proof.errors import CannotRun, NoInput
from onnxrep.proof.sessions import Feeds, Session

Shapes = Mapping[str, tuple[int, ...]]
Ranges = Mapping[str, tuple[float, float]]

SIZES = (1, 2, 3, 4, 5, 7, 8, 12, 16, 24, 28, 32, 48, 56, 64, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640)
"""Sizes tried for a dynamic dimension, smallest first."""

USUAL_SIZES = (224, 256, 320, 384, 512, 640, 192, 128, 112, 96, 64, 32)
"""Sizes tried for a dynamic dimension of an image where one usual size is wanted, best first."""

USUAL_LENGTHS = (128, 64, 256, 32, 16, 77)
"""The same for what is no image."""

ODD_SIZES = ((33, 47), (45, 65), (97, 67), (7, 9), (63, 95), (129, 161), (225, 257))
"""Pairs of sizes tried for an image that is neither square nor even."""

CONSTANT_SETS = ("zeros", "ones")
"""Input sets that show biases and borders, but by themselves decide nothing."""

PIXEL_RANGES = {
    "nominalrange_0_255": (0.0, 255.0),
    "normalized_0_1": (0.0, 1.0),
    "normalized_1_1": (-1.0, 1.0),
    "nominalrange_16_235": (16.0, 235.0),
}
"""What ``Image.NominalPixelRange`` may say, in lower case."""

_DTYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
}
_REALS = ("tensor(float)", "tensor(double)", "tensor(float16)")


@dataclass(frozen=True)
class InputSet:
    """One set of inputs: what it is called in reports, and its arrays."""

    name: str
    feeds: Feeds


@dataclass(frozen=True)
class Wishes:
    """What the user says about inputs.

    Attributes:
        shapes: input name -> shape.
        data: a ``.npz`` file whose arrays are named as inputs; a leading axis may hold several sets.
        ranges: input name -> smallest and largest value that it will get; besides what the model itself declares.

    """

    shapes: Shapes
    data: Path | None = None
    ranges: Ranges = field(default_factory=dict)


def seed_of(data: bytes) -> int:
    """Return the seed for a model: the same for the same bytes, whatever else is in the run."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")


def input_sets(
    session: Session,
    wishes: Wishes,
    seed: int,
    limits: Mapping[str, int],
    affordable: Callable[[Shapes], None],
    inside: Sequence[str] = (),
) -> Iterator[InputSet]:
    """Yield the sets on which two models are compared.

    Normal data at every size chosen, then at the last of them uniform data, images that are zero but for their
    outermost pixels, zeros and ones; over the ranges that are known; and the user's own data.

    Args:
        session: of the original model, which decides what is legal.
        wishes: the user's.
        seed: for the random sets.
        limits: input name -> exclusive upper bound for an integer input.
        affordable: raises NoInput for shapes that would take more memory than there is.
        inside: outputs of the session that are values inside the model: where one is empty, no dynamic size is legal.

    Raises:
        NoInput: an input has a type without values here, or no size tried is legal.
        UsageError: the user's shapes or data do not fit.

    """
    for name, kind, _ in session.inputs:
        if kind not in _DTYPES and wishes.data is None:
            raise NoInput(f"input {name} has type {kind}")
    _check_known(session, "--input-range", wishes.ranges)
    if wishes.data is not None:
        yield from _from_file(session, wishes.data)
        if any(kind not in _DTYPES for _, kind, _ in session.inputs):
            return
    shapes = legal_shapes(session, wishes, seed, limits, affordable, inside)
    for index, shape in enumerate(shapes):
        rng = np.random.default_rng([seed, index])
        yield InputSet(f"normal {describe(shape)}", _filled(session, shape, "normal", rng, limits))
    last = shapes[-1]
    for kind in ("uniform", "border", *CONSTANT_SETS):
        rng = np.random.default_rng([seed, len(shapes)])
        yield InputSet(f"{kind} {describe(last)}", _filled(session, last, kind, rng, limits))
    if wishes.ranges:
        rng = np.random.default_rng([seed, len(shapes)])
        yield InputSet(f"range {describe(last)}", _filled(session, last, "uniform", rng, limits, wishes.ranges))


def declared_ranges(model: onnx.ModelProto) -> dict[str, tuple[float, float]]:
    """Return the range of each input that the model declares as an image, by its metadata.

    See https://onnx.ai/onnx/repo-docs/MetadataProps.html: ``Image.NominalPixelRange`` is for all values whose type has
    the denotation ``IMAGE``; keys and values are case insensitive.
    """
    said = {entry.key.lower(): entry.value.lower() for entry in model.metadata_props}
    limits = PIXEL_RANGES.get(said.get("image.nominalpixelrange", ""))
    images = [v.name for v in model.graph.input if v.type.denotation.upper() == "IMAGE"]
    return dict.fromkeys(images, limits) if limits else {}


def _check_known(session: Session, option: str, given: Iterable[str]) -> None:
    """Make sure that what the user says is about inputs that the model has.

    Raises:
        UsageError: it is not.

    """
    names = [name for name, _, _ in session.inputs]
    for name in given:
        if name not in names:
            raise UsageError(f"{option} {name}: the model has no such input; it has {', '.join(names)}")


def describe(shapes: Shapes) -> str:
    """Return shapes as a person writes them."""
    return ", ".join("x".join(map(str, s)) if s else "scalar" for s in shapes.values()) or "no inputs"


def legal_shapes(
    session: Session,
    wishes: Wishes,
    seed: int,
    limits: Mapping[str, int],
    affordable: Callable[[Shapes], None],
    inside: Sequence[str],
) -> list[dict[str, tuple[int, ...]]]:
    """Return the input shapes to compare at: the declared one, or for dynamic inputs a tiny, an odd and a larger one.

    A size is legal if the original model runs with it, makes at least one element of output, and no image inside is
    empty: runtimes then do what they like, such as to leave an empty operand out of a Concat.

    Raises:
        NoInput: none of the sizes tried is legal.
        UsageError: a wished shape does not fit the declared one.

    """
    declared = {name: _declared(name, dims, wishes) for name, _, dims in session.inputs}
    _check_known(session, "--input-shape", wishes.shapes)
    dynamic = any(isinstance(d, str) for dims in declared.values() for d in dims)

    too_large: list[NoInput] = []

    def runs(shapes: dict[str, tuple[int, ...]]) -> bool:
        try:
            affordable(shapes)
        except NoInput as error:
            too_large.append(error)
            return False
        feeds = _filled(session, shapes, "normal", np.random.default_rng(seed), limits)
        try:
            results = session.run(feeds)
        except CannotRun:
            return False
        full = all(np.size(results[name]) for name in inside if np.asarray(results[name]).dtype.kind == "f")
        return full and any(getattr(r, "size", 1) for name, r in results.items() if name not in inside)

    if not dynamic:
        fixed = {n: tuple(int(d) for d in dims) for n, dims in declared.items()}
        affordable(fixed)
        return [fixed]
    found: list[dict[str, tuple[int, ...]]] = []
    tiny = next((s for s in (_filled_in(declared, 1, (size,)) for size in SIZES) if runs(s)), None)
    if tiny is not None:
        found.append(tiny)
    for sizes in (ODD_SIZES, tuple((s,) for s in SIZES if s >= 32)):
        shape = next((s for s in (_filled_in(declared, 2, pair) for pair in sizes) if s not in found and runs(s)), None)
        if shape is not None:
            found.append(shape)
    if not found and too_large:
        raise too_large[0]
    if not found:
        raise NoInput("the model runs at none of the sizes tried; give one with --input-shape NAME:1,3,224,224")
    return found


def usual_feeds(session: Session, wishes: Wishes, seed: int, limits: Mapping[str, int]) -> tuple[Feeds, bool]:
    """Return one set of inputs as it may be in use, and whether a size had to be chosen for it.

    The first set of the user's data if there is one; else random data of the declared or wished sizes, a dynamic batch
    of one, and of the usual sizes for other dynamic dimensions the first at which the model runs.

    Args:
        session: of the model.
        wishes: the user's.
        seed: for the random data.
        limits: input name -> exclusive upper bound for an integer input.

    Raises:
        NoInput: an input has a type without values here, or no size tried is legal.
        UsageError: the user's shapes or data do not fit.
        CannotRun: the model does not run on the one set there is.

    """
    if wishes.data is not None:
        return next(_from_file(session, wishes.data)).feeds, False
    for name, kind, _ in session.inputs:
        if kind not in _DTYPES:
            raise NoInput(f"input {name} has type {kind}; give it with --input-data")
    _check_known(session, "--input-shape", wishes.shapes)
    _check_known(session, "--input-range", wishes.ranges)
    declared = {name: _declared(name, dims, wishes) for name, _, dims in session.inputs}
    rng = np.random.default_rng(seed)
    if not any(isinstance(d, str) for dims in declared.values() for d in dims):
        shapes = _filled_in(declared, 1, (1,))
        return _filled(session, shapes, "normal", rng, limits, wishes.ranges), False
    images = any(len(dims) >= 4 for dims in declared.values())
    for size in dict.fromkeys((*(USUAL_SIZES if images else USUAL_LENGTHS), *SIZES)):
        feeds = _filled(session, _filled_in(declared, 1, (size,)), "normal", rng, limits, wishes.ranges)
        try:
            if any(np.size(r) for r in session.run(feeds).values()):
                return feeds, True
        except CannotRun:
            continue
    raise NoInput("the model runs at none of the sizes tried; give one with --input-shape NAME:1,3,224,224")


def _declared(name: str, dims: Sequence[Any], wishes: Wishes) -> tuple[int | str, ...]:
    """Return an input's dims, a name for each that is dynamic; the user's wish where there is one."""
    wish = wishes.shapes.get(name)
    if wish is not None:
        fits = not dims or (
            len(wish) == len(dims)
            and all(not isinstance(d, int) or d in (w, 0) for d, w in zip(dims, wish, strict=True))
        )
        if not fits:
            raise UsageError(f"--input-shape {name}:{','.join(map(str, wish))} does not fit the declared {list(dims)}")
        return tuple(wish)
    return tuple(
        d if isinstance(d, int) and d > 0 else (d or f"{name}:{i}") if isinstance(d, str) else f"{name}:{i}"
        for i, d in enumerate(dims)
    )


def _filled_in(
    declared: Mapping[str, tuple[int | str, ...]], batch: int, sizes: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    """Return shapes with every dynamic dimension replaced: the first axis by ``batch``, others by ``sizes`` in turn."""
    chosen: dict[str, int] = {}
    for dims in declared.values():
        for axis, dim in enumerate(dims):
            if isinstance(dim, str) and dim not in chosen:
                chosen[dim] = batch if axis == 0 else sizes[axis % len(sizes)]
    return {n: tuple(d if isinstance(d, int) else chosen[d] for d in dims) for n, dims in declared.items()}


def _filled(
    session: Session,
    shapes: Shapes,
    kind: str,
    rng: np.random.Generator,
    limits: Mapping[str, int],
    ranges: Ranges | None = None,
) -> dict[str, NDArray[Any]]:
    """Return arrays of one kind for every input; those with a known range are uniform over it."""
    feeds: dict[str, NDArray[Any]] = {}
    for name, type_, _ in session.inputs:
        dtype, shape = _DTYPES[type_], shapes[name]
        values: NDArray[Any]
        low, high = (ranges or {}).get(name, (0.0, 0.0))
        if low < high:
            values = rng.uniform(low, high, shape)
            values = values if np.issubdtype(dtype, np.floating) else np.rint(values)
        elif np.issubdtype(dtype, np.floating):
            values = _floats(kind, shape, rng)
        elif kind in ("zeros", "ones"):
            values = np.full(shape, int(kind == "ones"))
        else:
            values = rng.integers(0, 2 if dtype is np.bool_ else limits.get(name, 8), shape)
        feeds[name] = np.asarray(values).astype(dtype)
    return feeds


def _floats(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[Any]:
    """Return floats of one kind."""
    if kind in ("normal", "border"):
        values = np.asarray(rng.standard_normal(shape))
        inner: tuple[Any, ...] = (slice(1, -1),) * (len(shape) - 2)
        if kind == "border" and inner:
            values[(..., *inner)] = 0.0
        return values
    return rng.random(shape) if kind == "uniform" else np.full(shape, float(kind == "ones"))


def _from_file(session: Session, path: Path) -> Iterator[InputSet]:
    """Yield the sets in a ``.npz`` file: one, or as many as a leading axis holds beyond an input's rank."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise UsageError(f"--input-data {path}: no such file") from None
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"--input-data {path}: not a .npz file of plain arrays ({error})") from None
    missing = [name for name, _, _ in session.inputs if name not in arrays]
    if missing:
        raise UsageError(
            f"--input-data {path}: no array named {missing[0]}; it has {', '.join(sorted(arrays)) or 'none'}"
        )
    ranks = {name: len(dims) for name, _, dims in session.inputs}
    stacked = all(arrays[name].ndim == rank + 1 for name, rank in ranks.items())
    count = min((len(arrays[name]) for name in ranks), default=1) if stacked else 1
    if not count:
        raise UsageError(f"--input-data {path}: holds no set of inputs")
    for index in range(count):
        feeds: dict[str, NDArray[Any]] = {}
        for name, kind, _ in session.inputs:
            values = arrays[name][index] if stacked else arrays[name]
            dtype = _DTYPES.get(kind)
            if dtype is not None and values.dtype != dtype:
                if not np.can_cast(values.dtype, dtype, "same_kind"):
                    raise UsageError(f"--input-data {path}: {name} holds {values.dtype}, the model wants {kind}")
                values = values.astype(dtype)
            feeds[name] = values
        yield InputSet(f"{path.name} #{index}" if stacked else path.name, feeds)


def cropped(model: onnx.ModelProto) -> list[str]:
    """Return the values of a model that may be empty at small sizes: what is cut out of others."""
    known = {"", *(v.name for v in model.graph.output)}
    made = (o for node in model.graph.node if node.op_type in ("Slice", "Split") for o in node.output)
    return [name for name in made if name not in known]


def index_limits(model: onnx.ModelProto) -> dict[str, int]:
    """Return an exclusive upper bound for each integer input that indexes a table of known size."""
    dims = {t.name: tuple(t.dims) for t in model.graph.initializer}
    limits: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in ("Gather", "GatherElements", "GatherND") and len(node.input) > 1 and node.input[0] in dims:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            table = dims[node.input[0]]
            if -len(table) <= axis < len(table):
                limits[node.input[1]] = min(limits.get(node.input[1], table[axis]), table[axis])
    return limits


def overridden(model: onnx.ModelProto, folder: files.Folder | None, session: Session, seed: int) -> Feeds:
    """Return other values for the weights that a caller may override, of the same signs: none is just its default."""
    kinds = {name: kind for name, kind, _ in session.overridable if kind in _REALS}
    found: dict[str, NDArray[Any]] = {}
    rng = np.random.default_rng([seed, 1 << 16])
    for tensor in model.graph.initializer:
        if tensor.name in kinds:
            values = np.asarray(files.array(tensor, folder), np.float64)
            moved = values * rng.uniform(0.5, 1.5, values.shape) + rng.uniform(0.01, 0.1, values.shape)
            found[tensor.name] = np.asarray(moved, _DTYPES[kinds[tensor.name]])
    return found
