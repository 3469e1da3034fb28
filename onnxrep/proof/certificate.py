"""The proof of one fold: what was removed and what was written are evaluated in float64 and must be the same.

Both are affine, so they agree on all inputs if they agree on zero and on enough others, at sizes that hold every border
situation: one image with room between its borders per remainder of the stride, and the tiny ones on which both borders
meet. No tolerance for wrong folds is in here: float64 rounding is bounded by the sum of all terms' magnitudes.

Folds of equal structure, of which a network has many, are proven together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxrep.graph import Edit
from onnxrep.lift import Facts
from onnxrep.plan.numbers import FRAME_ROUNDINGS
from onnxrep.proof.judge import ROUNDOFF, SUBNORMAL
from onnxrep.proof.program import Program, outside, pair
from onnxrep.proof.semantics import CannotEvaluate, IllegalSize, is_float
from onnxrep.proof.sizes import Sizes
from onnxrep.shapes import Known, Shape, assign

Array = NDArray[np.float64]
Shapes = tuple[tuple[int, ...], ...]
"""Dims of the sources of a fold, in order."""

BOUND = 1e-12
"""Difference allowed by float64 rounding, relative to the magnitude of all terms."""

_EXHAUSTIVE_IMAGES, _EXHAUSTIVE_WORK = 2000, 3e7
_VECTORS, _VECTOR_WORK = 2, 5e7
_MANY = 8
"""Equal folds from which on each gets a smaller share of that work."""
_LARGEST = 2e11
_CHUNK = 1 << 24
"""Elements of the weights, or of the inputs, of folds that are proven at once."""
_THREADS = 2
"""Proofs that run side by side."""
_MOST_ELEMENTS = 1 << 27
"""Elements of one input that is still evaluated."""


@dataclass(frozen=True)
class Claim:
    """What a fold says: the nodes of an edit make the same value as those that the graph has.

    Attributes:
        facts: of the scope.
        output: the value.
        sources: the values that both read.
        spatial: whether the sources are images, channels on axis 1.
        rounded: whether a border stands for a bias up to its rounding.
        edit: the new nodes.
        representative: gives the same name to values of the scope that are certainly equal.
    """

    facts: Facts
    output: str
    sources: tuple[str, ...]
    spatial: bool
    rounded: bool
    edit: Edit
    representative: Callable[[str], str]


@dataclass(frozen=True)
class Certificate:
    """Whether a claim holds, and by what that was found.

    Attributes:
        fault: why not; empty if it holds.
        sizes: how many sizes of image were tried.
        probes: how: ``exhaustive``, ``vectors`` (impulses that carry random channels) or ``dense``.
        error: largest difference, relative to the magnitude of all terms.
        bound: the largest that is allowed.
        undecided: whether the fault is just that nothing could be compared.
    """

    fault: str = ""
    sizes: int = 0
    probes: str = "dense"
    error: float = 0.0
    bound: float = BOUND
    undecided: bool = False


@dataclass
class _Case:
    """A claim with its programs and the sizes at which they are run."""

    claim: Claim
    before: Program
    after: Program
    sizes: Mapping[Shapes, Mapping[str, tuple[int, ...]]]
    """Dims of the sources, and of values of which only the Shape is taken."""
    shrink: float


def certify(claims: Sequence[Claim]) -> list[Certificate]:
    """Return a certificate per claim."""
    results: list[Certificate | None] = [_rounding_fault(c.edit) for c in claims]
    groups: dict[object, list[tuple[int, _Case]]] = {}
    for index, claim in enumerate(claims):
        if results[index] is not None:
            continue
        try:
            case = _case(claim)
        except CannotEvaluate as error:
            results[index] = Certificate(f"it cannot be evaluated: {error}", undecided=True)
            continue
        sizes = tuple((shapes, *sorted(beyond.items())) for shapes, beyond in case.sizes.items())
        types = tuple(values.dtype for edit in claim.edit.whole for _, values in edit.tensors)
        programs = case.before.signature(), case.after.signature()
        key = *programs, sizes, types, claim.rounded, claim.spatial
        groups.setdefault(key, []).append((index, case))
    chunks = [chunk for group in groups.values() for chunk in _chunks(group)]
    for chunk, found in zip(chunks, _proven([[case for _, case in chunk] for chunk in chunks]), strict=True):
        for (index, _), certificate in zip(chunk, found, strict=True):
            results[index] = certificate
    return [r for r in results if r is not None]


def _proven(chunks: Sequence[Sequence[_Case]]) -> Iterator[list[Certificate]]:
    """Yield the certificates of each chunk; several are made side by side, as products release the interpreter."""
    if len(chunks) < _THREADS:
        yield from map(_prove, chunks)
        return
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(_prove, chunks)


def _prove(chunk: Sequence[_Case]) -> list[Certificate]:
    """Return the certificates of one chunk."""
    return _Proof(chunk).certificates()


def _chunks(group: list[tuple[int, _Case]]) -> Iterator[list[tuple[int, _Case]]]:
    """Yield parts of a group whose weights and images fit into memory together."""
    case = group[0][1]
    weights = sum(v.size for p in (case.before, case.after) for v in p.constants.values())
    images = max((sum(map(math.prod, shapes)) for shapes in case.sizes), default=1)
    count = max(_CHUNK // _THREADS // max(weights, 4 * images, 1), 1)
    for start in range(0, len(group), count):
        yield group[start : start + count]


def _rounding_fault(edit: Edit) -> Certificate | None:
    """Compare each stored weight with the one that was calculated: it must be that, rounded once."""
    for part in edit.whole:
        for name, values in ((n, v) for n, v in part.tensors if n in part.exact):
            if not _is_rounded(values, part.exact[name]):
                return Certificate(f"{name} is not stored as it was calculated")
    return None


def _is_rounded(values: NDArray[Any], exact: Array) -> bool:
    """Whether values are exact ones, rounded once to their own type."""
    if values.shape != exact.shape:
        return False
    if values.dtype.kind == "f" and np.array_equal(values, exact.astype(values.dtype)):
        return bool(np.all(np.isfinite(values)))
    kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
    limit = ROUNDOFF[kind] * np.abs(exact) + SUBNORMAL[kind]
    return bool(np.all(np.abs(values.astype(np.float64) - exact) <= limit))


def _case(claim: Claim) -> _Case:
    """Return the programs of a claim and the sizes to try.

    Raises:
        CannotEvaluate: a program or the sizes cannot be told.
    """
    facts = claim.facts
    before, after = pair(facts, claim.output, claim.sources, claim.edit, claim.representative)
    shapes = [s for s in map(facts.shapes.of, before.sources) if s is not None]
    if len(shapes) < len(before.sources):
        raise CannotEvaluate("the rank of a source is not known")
    sizes = Sizes(shapes, before, after, spatial=claim.spatial)
    names = sorted({*outside(before), *outside(after)})
    beyond = [facts.shapes.of(n) or () for n in names]
    found: dict[Shapes, dict[str, tuple[int, ...]]] = {}
    for wanted in sizes.wanted():
        known: Known = {}
        dims = [_dims(s, w, known) for s, w in zip(sizes.shapes, wanted, strict=True)]
        more = [_dims(s, (1,) * len(s), known) for s in beyond]
        if all(min(d, default=1) > 0 for d in dims):
            found.setdefault(tuple(dims), dict(zip(names, more, strict=True)))
    return _Case(claim, before, after, found, sizes.shrink)


def _dims(shape: Shape, wanted: Sequence[int], known: Known) -> tuple[int, ...]:
    """Return a value's dims: what follows from what is known already, else what is wanted."""
    result = []
    for dim, size in zip(shape, wanted, strict=True):
        assign(dim, size, known)
        result.append(dim if isinstance(dim, int) else dim.number(known))
    return tuple(result)


class _Proof:
    """The proof of some claims of equal structure."""

    def __init__(self, cases: Sequence[_Case]) -> None:
        self._cases, first = cases, cases[0]
        self._before, self._after, self._claim = first.before, first.after, first.claim
        self._weights = [_stacked([getattr(c, side) for c in cases]) for side in ("before", "after")]
        self._sizes = _absolute(self._weights[0])
        self._faults = [""] * len(cases)
        self._errors = [0.0] * len(cases)
        self._tried = 0
        self._doubts: frozenset[str] = frozenset()

    def certificates(self) -> list[Certificate]:
        """Run all sizes; those at which the original does not run do not count."""
        first, probes, illegal = self._cases[0], "dense", ""
        for shapes, beyond in first.sizes.items():
            try:
                feeds, kind = self._probes(shapes, main=not self._tried)
                self._compare(shapes, feeds, beyond)
            except IllegalSize as error:
                illegal = str(error)
                continue
            except CannotEvaluate as error:
                self._doubt(f"it cannot be evaluated: {error}")
                break
            probes = kind if not self._tried else probes
            self._tried += 1
        if not self._tried:
            self._doubt(f"the original runs at none of the sizes tried: {illegal}")
        return [
            Certificate(fault, self._tried, probes, error, undecided=fault in self._doubts)
            for fault, error in zip(self._faults, self._errors, strict=True)
        ]

    def _probes(self, shapes: Shapes, *, main: bool) -> tuple[list[Array], str]:
        """Return the sources' stacks: zero, dense ones, and impulses where all borders have their place."""
        work = self._before.work(dict(zip(self._before.sources, shapes, strict=True))) / self._cases[0].shrink
        elements = sum(map(math.prod, shapes))
        if work > _LARGEST or elements > _MOST_ELEMENTS:
            raise CannotEvaluate(f"it is too large at {list(shapes)}")
        generator = np.random.default_rng(elements)
        signed = [_signed(generator, (1, *s)) for s in shapes]
        if not main and not self._claim.rounded:
            return [d[None] for d in signed], "dense"
        dense = [np.concatenate([np.zeros((1, *s)), d]) for s, d in zip(shapes, signed, strict=True)]
        if not main:
            return [d[None] for d in dense], "dense"
        wide = [np.concatenate([d, generator.standard_normal((1, *d.shape[1:]))]) for d in dense]
        groups = math.gcd(self._before.groups, self._after.groups) if self._claim.spatial else 1
        share = max(len(self._cases) / _MANY, 1.0)
        most = _CHUNK // max(elements * math.ceil(share), 1)
        kind, impulses = _impulses(shapes, 1 if self._claim.spatial else -1, groups, work * share, most, generator)
        return [np.concatenate(pair)[None] for pair in zip(wide, impulses, strict=True)], kind

    def _compare(self, shapes: Shapes, feeds: Sequence[Array], beyond: Mapping[str, tuple[int, ...]]) -> None:
        """Compare both programs at one size.

        Raises:
            IllegalSize: the original does not run there.
            CannotEvaluate: an op is not known.
        """
        values = dict(zip(self._before.sources, feeds, strict=True))
        largest = {s: np.full((1, 1, *f.shape[2:]), np.max(np.abs(f), initial=0.0)) for s, f in values.items()}
        empty = len(self._cases[0].sizes) == 1  # else a size at which an image inside has no pixel is none to judge by
        with np.errstate(all="ignore"):
            before = self._before.run(values, self._weights[0], beyond, empty=empty)
            sizes = self._before.run(largest, self._sizes, beyond, magnitude=True, empty=empty)
            try:
                after = self._after.run(values, self._weights[1], beyond, empty=True)
            except IllegalSize as error:
                self._fail(f"at {list(shapes)} the new nodes do not run: {error}")
                return
            if before.shape[2:] != after.shape[2:]:
                self._fail(f"at {list(shapes)} the result is {after.shape[2:]}, not {before.shape[2:]}")
                return
            difference = before - after
            limit = BOUND * sizes
            if self._claim.rounded:  # what zero becomes may differ by the rounding of a border; what is linear may not
                nothing = {s: np.zeros_like(f) for s, f in largest.items()}
                shifts = self._before.run(nothing, self._sizes, beyond, magnitude=True, empty=empty)
                slack = FRAME_ROUNDINGS * self._roundoff() * shifts
                constant = difference[:, :1]
                difference = np.concatenate([constant, difference[:, 1:] - constant], axis=1)
                limit = limit + np.concatenate([slack, *[0.0 * slack] * (difference.shape[1] - 1)], axis=1)
            difference = np.abs(difference)
            wrong = ~(difference <= limit)
            relative = np.where(sizes > 0, difference / np.where(sizes > 0, sizes, 1.0), difference)
        count = len(self._cases)
        old, new, bad, far = (np.broadcast_to(a, (count, *a.shape[1:])) for a in (before, after, wrong, relative))
        for index in range(count):
            if not self._faults[index] and np.any(bad[index]):
                place = tuple(int(i) for i in np.argwhere(bad[index])[0])
                became = f"{new[index][place]:.9g} instead of {old[index][place]:.9g}"
                self._faults[index] = f"at {list(shapes)}, {list(place[1:])} became {became}"
            self._errors[index] = max(self._errors[index], float(np.max(far[index], initial=0.0)))

    def _fail(self, fault: str) -> None:
        """Note a fault of all claims that have none yet."""
        self._faults = [known or fault for known in self._faults]

    def _doubt(self, fault: str) -> None:
        """Note that nothing can be said of all claims that have no fault yet."""
        self._doubts |= {fault}
        self._fail(fault)

    def _roundoff(self) -> float:
        """Return the unit roundoff of the coarsest type that the new nodes store."""
        kinds = [onnx.helper.np_dtype_to_tensor_dtype(v.dtype) for _, v in self._claim.edit.tensors]
        return max((ROUNDOFF[k] for k in kinds if k in ROUNDOFF), default=0.0)


def _stacked(programs: Sequence[Program]) -> dict[str, Array]:
    """Return the constants of programs of equal structure as stacks in float64, under the names of the first."""
    names = [_reads(p) for p in programs]
    result = {}
    for place, name in enumerate(names[0]):
        found = [p.constants[mine[place]] for p, mine in zip(programs, names, strict=True)]
        if not is_float(found[0]):
            result[name] = found[0]
        else:
            stack = np.stack(found, dtype=np.float64) if len(found) > 1 else np.asarray(found[0], np.float64)[None]
            result[name] = stack[:, None]
    return result


def _reads(program: Program) -> list[str]:
    """Return the constants of a program in the order in which it first reads them."""
    return list(dict.fromkeys(n for node, _ in program.nodes for n in node.input if n in program.constants))


def _absolute(weights: Mapping[str, Array]) -> dict[str, Array]:
    """Return weights without their signs."""
    return {name: np.abs(v) if is_float(v) else v for name, v in weights.items()}


def _signed(generator: np.random.Generator, shape: Sequence[int]) -> Array:
    """Return numbers of either sign, none of them near zero."""
    return np.asarray(generator.uniform(1.0, 2.0, shape) * generator.choice((-1.0, 1.0), shape))


def _impulses(
    shapes: Shapes, axis: int, groups: int, work: float, memory: int, generator: np.random.Generator
) -> tuple[str, list[Array]]:
    """Return impulses in one source at a time, another in each image of the batch.

    All of them, of those in groups of channels that do not meet several at once; or else, at each position or at some,
    impulses that carry random numbers in all channels. There is memory for so many batches.
    """
    batch = shapes[0][0] if len({s[0] for s in shapes}) == 1 else 1
    together = [groups if s[1] % groups == 0 else 1 for s in shapes]
    count = sum(math.prod(s[1:]) // g for s, g in zip(shapes, together, strict=True))
    if count <= min(_EXHAUSTIVE_IMAGES, memory * batch) and count * work <= _EXHAUSTIVE_WORK * batch:
        kind, blocks = "exhaustive", [_each(s[1:], g) for s, g in zip(shapes, together, strict=True)]
    else:
        most = min(int(_VECTOR_WORK / max(work, 1.0)), memory) * batch // len(shapes)
        kind, blocks = "vectors", [_carrying(s[1:], axis - (axis > 0), generator, most) for s in shapes]
    batches = -(-sum(map(len, blocks)) // batch)
    stacks, start = [], 0
    for shape, block in zip(shapes, blocks, strict=True):
        stack = np.zeros((batches, *shape))
        places = np.arange(start, start + len(block))
        stack[places // batch, places % batch] = block
        start += len(block)
        stacks.append(stack)
    return (kind if batches else "dense"), stacks


def _each(shape: Sequence[int], groups: int) -> Array:
    """Return all impulses of an image ``[C, ...]``, one per group of channels at once."""
    count = math.prod(shape) // groups
    return np.tile(np.eye(count).reshape(count, shape[0] // groups, *shape[1:]), (1, groups, *(1,) * (len(shape) - 1)))


def _carrying(shape: Sequence[int], axis: int, generator: np.random.Generator, most: int) -> Array:
    """Return impulses that carry random numbers in all channels: several at each position, or ``most`` in all."""
    channels = shape[axis]
    rest = [n for i, n in enumerate(shape) if i != axis % len(shape)]
    positions = math.prod(rest)
    chosen = np.unique(np.linspace(0, positions - 1, min(most, positions)).astype(int)) if most else np.zeros(0, int)
    vectors = min(_VECTORS, max(most // max(positions, 1), 1))
    where = np.repeat(chosen, vectors)
    images = np.zeros((len(where), positions, channels))
    images[np.arange(len(where)), where] = _signed(generator, (len(where), channels))
    return np.asarray(np.moveaxis(images.reshape(-1, *rest, channels), -1, 1 + axis % len(shape)))
