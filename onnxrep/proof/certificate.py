"""The proof of one fold: what was removed and what was written are evaluated in float64 and must be the same.

Both are affine, so they agree on all inputs if they agree on zero and on enough others, at sizes that hold every border
situation: one image with room between its borders per remainder of the stride, and the tiny ones on which both borders
meet. No tolerance for wrong folds is in here: float64 rounding is bounded by the sum of all terms' magnitudes.

Folds of equal structure, of which a network has many, are proven together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxrep.graph import Edit
from onnxrep.lift import Facts
from onnxrep.proof.judge import ROUNDOFF, SUBNORMAL
from onnxrep.proof.program import Program, Reach, outside, pair
from onnxrep.proof.semantics import CannotEvaluate, is_float
from onnxrep.shapes import Known, Shape, assign

Array = NDArray[np.float64]
Shapes = tuple[tuple[int, ...], ...]
"""Dims of the sources of a fold, in order."""

BOUND = 1e-12
"""Difference allowed by float64 rounding, relative to the magnitude of all terms."""

FRAME_ROUNDINGS = 16.0
"""Roundings by which a border may differ from the bias that it stands for; see the rule for border frames."""

_PRODUCT = 6
"""Sizes per axis up to which all pairs are tried."""
_MOST_SIZES = 12
_TOKENS = ((1, 6), (1, 1), (2, 2), (1, 5), (1, 12), (1, 14), (1, 16))
"""Batch and other sizes where the sources are no images."""
_EXHAUSTIVE_IMAGES, _EXHAUSTIVE_WORK = 2000, 1e8
_VECTORS, _VECTOR_WORK = 2, 4e8
_MANY = 8
"""Equal folds from which on each gets a smaller share of that work."""
_WORK = 1e9
"""Multiply-accumulates that the sizes of one fold may take together, the main one aside."""
_LARGEST = 2e11
_CHUNK = 1 << 24
"""Elements of the weights of folds that are proven at once."""


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
    """

    fault: str = ""
    sizes: int = 0
    probes: str = "dense"
    error: float = 0.0
    bound: float = BOUND


@dataclass
class _Case:
    """A claim with its programs and the sizes at which they are run."""

    claim: Claim
    before: Program
    after: Program
    shapes: list[Shapes]
    outside: list[dict[str, tuple[int, ...]]]


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
            results[index] = Certificate(f"it cannot be evaluated: {error}")
            continue
        sizes = tuple(tuple(sorted(o.items())) for o in case.outside)
        key = case.before.signature(), case.after.signature(), tuple(case.shapes), sizes, claim.rounded, claim.spatial
        groups.setdefault(key, []).append((index, case))
    for group in groups.values():
        for chunk in _chunks(group):
            found = _proven([case for _, case in chunk])
            for (index, _), certificate in zip(chunk, found, strict=True):
                results[index] = certificate
    return [r or Certificate("it was not looked at") for r in results]


def _chunks(group: list[tuple[int, _Case]]) -> Iterator[list[tuple[int, _Case]]]:
    """Yield parts of a group whose weights fit into memory together."""
    case = group[0][1]
    each = sum(v.size for p in (case.before, case.after) for v in p.constants.values())
    count = max(_CHUNK // max(each, 1), 1)
    for start in range(0, len(group), count):
        yield group[start : start + count]


def _rounding_fault(edit: Edit) -> Certificate | None:
    """Compare each stored weight with the one that was calculated: it must be that, rounded once."""
    for name, values in (tensor for e in (*edit.reads, edit) for tensor in e.tensors):
        exact = next((e.exact[name] for e in (*edit.reads, edit) if name in e.exact), None)
        if exact is None:
            continue
        kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        limit = ROUNDOFF[kind] * np.abs(exact) + SUBNORMAL[kind]
        if values.shape != exact.shape or not np.all(np.abs(values.astype(np.float64) - exact) <= limit):
            return Certificate(f"{name} is not stored as it was calculated")
    return None


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
    sizes = _Sizes(claim, shapes, before, after)
    names = sorted({*outside(before), *outside(after)})
    beyond = [facts.shapes.of(n) or () for n in names]
    found: dict[Shapes, dict[str, tuple[int, ...]]] = {}
    for wanted in sizes.wanted():
        known: Known = {}
        dims = [_dims(s, w, known) for s, w in zip(sizes.shapes, wanted, strict=True)]
        more = [_dims(s, (1,) * len(s), known) for s in beyond]
        if all(min(d, default=1) > 0 for d in dims):
            found.setdefault(tuple(dims), dict(zip(names, more, strict=True)))
    return _Case(claim, before, after, list(found), list(found.values()))


def _dims(shape: Shape, wanted: Sequence[int], known: Known) -> tuple[int, ...]:
    """Return a value's dims: what follows from what is known already, else what is wanted."""
    result = []
    for dim, size in zip(shape, wanted, strict=True):
        assign(dim, size, known)
        result.append(dim if isinstance(dim, int) else dim.number(known))
    return tuple(result)


class _Sizes:
    """The sizes at which a claim is tested: wanted dims per source; those that are fixed are taken as they are."""

    def __init__(self, claim: Claim, shapes: Sequence[Shape], before: Program, after: Program) -> None:
        self._before, self._after, self._claim = before, after, claim
        self._axes = max((len(s) - 2 for s in shapes), default=0) if claim.spatial else 0
        reaches = [before.reach(self._axes), after.reach(self._axes)]
        plain = Reach((1,) * self._axes, ())
        self._extent = [
            [max(r.get(s, plain).extent[a] for r in reaches) for a in range(self._axes)] for s in before.sources
        ]
        self._stride = [
            [max((r[s].stride[a] for r in reaches if s in r), default=1) for a in range(self._axes)]
            for s in before.sources
        ]
        self._scalable = before.is_scalable and after.is_scalable
        self.shapes = self._shrunk(shapes) if self._axes and self._scalable else list(shapes)

    def _shrunk(self, shapes: Sequence[Shape]) -> list[Shape]:
        """Return shapes in which lengths that are fixed are as small as the same border situations allow.

        All sources lose what as many positions of the result read, so that the remainders by the strides stay.
        """
        result = [list(s) for s in shapes]
        for axis in range(-2, self._axes):
            lengths = [s[axis + 2] for s in shapes]
            fixed = [n for n in lengths if isinstance(n, int)]
            if len(fixed) < len(lengths) or axis == -1:
                continue
            if axis == -2:
                if len(set(fixed)) == 1:
                    for dims in result:
                        dims[0] = 1
                continue
            steps = [Fraction(s[axis]) for s in self._stride]
            least = [2 * (e[axis] - 1) + math.ceil(s) for e, s in zip(self._extent, steps, strict=True)]
            spare = min(math.floor((n - m) / s) for n, m, s in zip(fixed, least, steps, strict=True))
            spare -= spare % math.lcm(*(s.denominator for s in steps))
            for dims, length, step in zip(result, fixed, steps, strict=True):
                dims[axis + 2] = length - int(step * max(spare, 0))
        return [tuple(dims) for dims in result]

    def wanted(self) -> Iterator[list[list[int]]]:
        """Yield dims to wish for, those of the main size first; what is fixed or follows from others goes before."""
        if not self._axes:
            for batch, size in _TOKENS:
                yield [[batch, *(size,) * (len(s) - 1)] for s in self.shapes]
            return
        lists = [self._of_axis(a) for a in range(self._axes)]
        spent = 0.0
        for index, combination in enumerate(_combinations(lists)):
            wanted = [2 if index == 1 else 1, 1, *combination]
            spent += self._before.work({"": wanted}) if index else 0.0
            if index < 2 or spent <= _WORK:
                yield [wanted[: len(s)] for s in self.shapes]

    def _of_axis(self, axis: int) -> list[int]:
        """Return the lengths to try along one axis, those with room between the borders first."""
        extents, strides = [e[axis] for e in self._extent], [math.ceil(s[axis]) for s in self._stride]
        step = max(strides, default=1)
        main = 2 * (max(extents, default=1) - 1) + step
        if all(isinstance(s[axis + 2], int) for s in self.shapes if len(s) > axis + 2):
            return [main]
        if not self._scalable:
            main = max(main, 8)
        lengths = [*range(main, main + step), *range(1, main)]
        if len(lengths) > _MOST_SIZES:
            some = {main, main + step - 1, main - 1, 1, 2, 3, max(extents), max(extents) + 1, max(extents) - 1}
            some |= {main + k for k in range(min(step, _MOST_SIZES))}
            lengths = [n for n in lengths if n in some]
        return lengths


def _combinations(lists: Sequence[Sequence[int]]) -> Iterator[tuple[int, ...]]:
    """Yield sizes for all axes: all combinations of few lengths; of many, each length with two others."""
    if all(len(mine) <= _PRODUCT for mine in lists) and math.prod(map(len, lists)) <= _PRODUCT**2:
        yield from product(*lists)
        return
    most = max(map(len, lists))
    for shift in (0, most // 2):
        for index in range(most):
            yield tuple(mine[(index + shift * axis) % len(mine)] for axis, mine in enumerate(lists))


def _proven(cases: Sequence[_Case]) -> list[Certificate]:
    """Prove claims of equal structure."""
    return _Proof(cases).certificates()


class _Proof:
    """The proof of some claims of equal structure."""

    def __init__(self, cases: Sequence[_Case]) -> None:
        self._cases, first = cases, cases[0]
        self._before, self._after, self._claim = first.before, first.after, first.claim
        self._weights = [_stacked([getattr(c, side) for c in cases]) for side in ("before", "after")]
        self._sizes = [_absolute(w) for w in self._weights]
        self._results = [Certificate() for _ in cases]
        self._tried = 0

    def certificates(self) -> list[Certificate]:
        """Run all sizes."""
        first = self._cases[0]
        probes = "dense"
        for index, (shapes, beyond) in enumerate(zip(first.shapes, first.outside, strict=True)):
            feeds, kind = self._probes(shapes, main=index == 0)
            if feeds is None:
                return [Certificate(f"it is too large to be evaluated at {list(shapes)}") for _ in self._cases]
            ran = self._compare(shapes, feeds, beyond)
            if ran and index == 0:
                probes = kind
        if not self._tried:
            return [Certificate(r.fault or "there is no size to try") for r in self._results]
        faults = [r.fault if self._is_real(r) else "" for r in self._results]  # some sizes are not legal
        return [
            replace(r, fault=fault, sizes=self._tried, probes=probes)
            for r, fault in zip(self._results, faults, strict=True)
        ]

    def _probes(self, shapes: Shapes, *, main: bool) -> tuple[list[Array] | None, str]:
        """Return the sources' stacks: zero, dense ones, and impulses where all borders have their place."""
        work = self._before.work(dict(zip(self._before.sources, shapes, strict=True)))
        if work > _LARGEST:
            return None, ""
        generator = np.random.default_rng(sum(math.prod(s) for s in shapes))
        dense = [_signed(generator, (1, *s)) for s in shapes]
        if not main:
            return [d[None] for d in dense], "dense"
        wide = [np.concatenate([np.zeros_like(d), d, generator.standard_normal(d.shape)]) for d in dense]
        groups = math.gcd(self._before.groups, self._after.groups) if self._claim.spatial else 1
        work *= max(len(self._cases) / _MANY, 1.0)
        kind, impulses = _impulses(shapes, self._channel_axis(), groups, work, generator)
        return [np.concatenate(pair)[None] for pair in zip(wide, impulses, strict=True)], kind

    def _channel_axis(self) -> int:
        return 1 if self._claim.spatial else -1

    def _compare(self, shapes: Shapes, feeds: Sequence[Array], beyond: Mapping[str, tuple[int, ...]]) -> bool:
        """Compare both programs at one size; return whether the original runs there."""
        sources = self._before.sources
        values = dict(zip(sources, feeds, strict=True))
        largest = {s: np.full((1, 1, *f.shape[2:]), np.max(np.abs(f), initial=0.0)) for s, f in values.items()}
        nothing = {s: np.zeros_like(f) for s, f in largest.items()}
        empty = len(self._cases[0].shapes) == 1  # else a size at which an image inside has no pixel is none to judge by
        with np.errstate(all="ignore"):
            try:
                before = self._before.run(values, self._weights[0], beyond, empty=empty)
                sizes = self._before.run(largest, self._sizes[0], beyond, magnitude=True, empty=empty)
                shifts: Array | float = 0.0
                if self._claim.rounded:
                    shifts = self._before.run(nothing, self._sizes[0], beyond, magnitude=True, empty=empty)
            except CannotEvaluate as error:
                self._fail(f"the original: {error}", keep=True)
                return False
            try:
                after = self._after.run(values, self._weights[1], beyond, empty=True)
            except CannotEvaluate as error:
                self._tried += 1
                self._fail(f"at {list(shapes)} the new nodes do not run: {error}")
                return True
            self._tried += 1
            if before.shape[2:] != after.shape[2:]:
                self._fail(f"at {list(shapes)} the result is {after.shape[2:]}, not {before.shape[2:]}")
                return True
            difference = np.abs(before - after)
            limit = BOUND * sizes + FRAME_ROUNDINGS * self._roundoff() * shifts
            wrong = ~(difference <= limit)
            relative = np.where(sizes > 0, difference / np.where(sizes > 0, sizes, 1.0), difference)
        count = len(self._results)
        old, new, bad, far = (np.broadcast_to(a, (count, *a.shape[1:])) for a in (before, after, wrong, relative))
        for index, known in enumerate(self._results):
            fault = known.fault if self._is_real(known) else ""
            if not fault and np.any(bad[index]):
                place = tuple(int(i) for i in np.argwhere(bad[index])[0])
                became = f"{new[index][place]:.9g} instead of {old[index][place]:.9g}"
                fault = f"at {list(shapes)}, {list(place[1:])} became {became}"
            largest_error = float(np.max(far[index], initial=0.0))
            self._results[index] = replace(known, fault=fault, error=max(known.error, largest_error))
        return True

    @staticmethod
    def _is_real(certificate: Certificate) -> bool:
        """Whether a fault is one of the fold, not of a size at which the original does not run."""
        return bool(certificate.fault) and not certificate.fault.startswith("the original: ")

    def _fail(self, fault: str, *, keep: bool = False) -> None:
        """Note a fault of all claims; ``keep``: unless there is one."""
        stays = [bool(r.fault) and (keep or self._is_real(r)) for r in self._results]
        self._results = [r if stay else replace(r, fault=fault) for r, stay in zip(self._results, stays, strict=True)]

    def _roundoff(self) -> float:
        """Return the unit roundoff of the coarsest type that the new nodes store."""
        kinds = [onnx.helper.np_dtype_to_tensor_dtype(v.dtype) for _, v in self._claim.edit.tensors]
        return max((ROUNDOFF[k] for k in kinds if k in ROUNDOFF), default=0.0)


def _stacked(programs: Sequence[Program]) -> dict[str, Array]:
    """Return the constants of programs of equal structure as stacks, under the names of the first."""
    names = [_reads(p) for p in programs]
    result = {}
    for place, name in enumerate(names[0]):
        values = programs[0].constants[name]
        if is_float(values):
            values = np.stack([p.constants[mine[place]] for p, mine in zip(programs, names, strict=True)])[:, None]
        result[name] = values
    return result


def _reads(program: Program) -> list[str]:
    """Return the constants of a program in the order in which it reads them."""
    return [n for node, _ in program.nodes for n in node.input if n in program.constants]


def _absolute(weights: Mapping[str, Array]) -> dict[str, Array]:
    """Return weights without their signs."""
    return {name: np.abs(v) if is_float(v) else v for name, v in weights.items()}


def _signed(generator: np.random.Generator, shape: Sequence[int]) -> Array:
    """Return numbers of either sign, none of them near zero."""
    return np.asarray(generator.uniform(1.0, 2.0, shape) * generator.choice((-1.0, 1.0), shape))


def _impulses(
    shapes: Shapes, axis: int, groups: int, work: float, generator: np.random.Generator
) -> tuple[str, list[Array]]:
    """Return impulses in one source at a time, the first of the batch.

    All of them, of those in groups of channels that do not meet several at once; or else, at each position or at some,
    impulses that carry random numbers in all channels.
    """
    kind = "exhaustive"
    blocks = [_each(s[1:], groups) for s in shapes if math.prod(s[1:]) // groups <= _EXHAUSTIVE_IMAGES]
    count = sum(map(len, blocks))
    if len(blocks) < len(shapes) or count > _EXHAUSTIVE_IMAGES or count * work > _EXHAUSTIVE_WORK:
        most = int(_VECTOR_WORK / max(work * len(shapes), 1.0))
        kind, blocks = "vectors", [_carrying(s[1:], axis - (axis > 0), generator, most) for s in shapes]
    total = sum(map(len, blocks))
    stacks, start = [], 0
    for shape, block in zip(shapes, blocks, strict=True):
        stack = np.zeros((total, *shape))
        stack[start : start + len(block), 0] = block
        start += len(block)
        stacks.append(stack)
    return (kind if total else "dense"), stacks


def _each(shape: Sequence[int], groups: int) -> Array:
    """Return all impulses of an image ``[C, ...]``, one per group of channels at once."""
    groups = groups if shape[0] % groups == 0 else 1
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
