"""The algebra against a naive oracle: worked examples, then properties that are exact by construction."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxrep.emit import attributes_of, weight_of
from onnxrep.lattice import Geometry, Inexact, Map, NotAligned, Vanishes, border_fault
from tests import oracle
from tests.strategies import groups, map_of, seeds, transposed_of, windows


def line(weights, taps, size, stride=1):
    """A 1-D map with one channel."""
    geometry = Geometry(1, 1, 1, (tuple(taps),), (stride,), (size,))
    return Map(geometry, np.array(weights, float).reshape(1, 1, -1))


def up(weights, taps, size=2, stride=2):
    """A transposed 1-D map with one channel."""
    geometry = Geometry(1, 1, 1, (tuple(taps),), (stride,), (size,), "transpose")
    return Map(geometry, np.array(weights, float).reshape(1, 1, -1))


def apply(map_, x, bias=None):
    """What the emitted convolution computes, by the oracle."""
    g, attributes = map_.geometry, attributes_of(map_)
    assert min((*attributes["pads"], 0)) == 0
    assert all(0 <= o < s for o, s in zip(g.kernel.output_padding, g.stride, strict=True))
    inputs = [np.asarray(x, float), weight_of(map_)]
    if bias is not None:
        inputs.append(np.asarray(bias, float))
    return (oracle.conv_transpose if g.mode == "transpose" else oracle.conv)(inputs, attributes)


def dense(map_):
    """The weight of all channels, ``[outputs, inputs, *taps]``, block by block."""
    g, w = map_.geometry, map_.weight
    rows, cols = g.rows or (0, g.outputs), g.cols or (0, g.inputs)
    tall, wide = (rows[1] - rows[0]) // g.group, (cols[1] - cols[0]) // g.group
    total = np.zeros((g.outputs, g.inputs, *w.shape[2:]))
    for k in range(g.group):
        top, left = rows[0] + k * tall, cols[0] + k * wide
        total[top : top + tall, left : left + wide] = w[k * tall : (k + 1) * tall]
    return total


def direct(map_, x):
    """The map's defining equation, tap by tap; a transposed map writes where the other one reads."""
    g, w = map_.geometry, dense(map_)
    sizes, transposed = g.result(x.shape[2:]), g.mode == "transpose"
    y = np.zeros((x.shape[0], g.outputs, *sizes))
    for index in np.ndindex(*w.shape[2:]):
        places = [[np.arange(x.shape[0])], [np.arange(x.shape[0])]]
        for i, s, t, n, m in zip(index, g.stride, g.taps, x.shape[2:], sizes, strict=True):
            strided = s * np.arange(n if transposed else m) + t[i]
            inside = np.flatnonzero((strided >= 0) & (strided < (m if transposed else n)))
            places[transposed].append(strided[inside])
            places[not transposed].append(inside)
        read, written = (np.ix_(p[0], np.arange(c), *p[1:]) for p, c in zip(places, (g.inputs, g.outputs), strict=True))
        y[written] += np.einsum("oi,ni...->no...", w[(..., *index)], x[read])
    return y


def row(*values):
    return np.array(values, float).reshape(1, 1, -1)


def test_sum_of_3x3_1x1_and_identity():
    merged = line([1, 2, 3], (-1, 0, 1), -1).plus(line([4], (0,), -1)).plus(Map.identity(1, 1))
    assert merged.dense_kernel().tolist() == [[[1, 7, 3]]]
    assert apply(merged, row(1, 2, 3, 4), [3]).ravel().tolist() == [16, 27, 38, 34]


def test_even_dilated_kernel_lies_on_the_corners_of_a_3_tap_kernel():
    merged = line([1, 2, 3], (-1, 0, 1), -1).plus(line([5, 7], (-1, 1), -1))
    assert merged.dense_kernel().ravel().tolist() == [6, 2, 10]
    assert apply(merged, row(1, 2, 3, 4, 5)).ravel().tolist() == [22, 40, 58, 76, 34]


def test_strided_composition():
    merged = line([1, 10], (0, 1), -2).after(line([1, 1], (0, 1), -2, stride=2))
    assert (merged.geometry.stride, merged.geometry.size) == ((2,), (-4,))
    assert merged.dense_kernel().ravel().tolist() == [1, 1, 10, 10]
    assert apply(merged, row(1, 2, 3, 4, 5, 6)).ravel().tolist() == [73, 117]


def test_bias_before_zero_padding_is_refused():
    first, second = line([2], (0,), -1), line([1, 1, 1], (-1, 0, 1), -1)
    assert "bias" in border_fault(second, first, np.ones(1))
    assert border_fault(second, first, np.zeros(1)) is None
    assert border_fault(second, first, None) is None


def test_padding_before_the_first_bias_is_exact():
    padded_pointwise, second = line([2], (0,), 1), None
    padded_pointwise = Map(Geometry(1, 1, 1, ((-1,),), (1,), (1,)), np.full((1, 1, 1), 2.0))
    second = line([1, 1, 1], (0, 1, 2), -3)
    assert border_fault(second, padded_pointwise, np.ones(1)) is None
    merged = second.after(padded_pointwise)
    assert apply(merged, row(1, 2, 3), second.response(np.ones(1))).ravel().tolist() == [9, 15, 13]


def test_patchify_before_a_padded_convolution_needs_a_static_size():
    first, second = line([1, 1], (0, 1), -2, stride=2), line([1, 1, 1], (-1, 0, 1), -1)
    assert border_fault(second, first, None) is not None
    assert border_fault(second, first, None, (4,)) is None
    assert border_fault(second, first, None, (5,)) is not None
    assert apply(second.after(first), row(1, 2, 3, 4)).ravel().tolist() == [10, 10]


def test_emission_of_a_crop_and_of_a_far_tap():
    crop = line([1], (0,), -4)
    assert crop.geometry.kernel.shape == (2,)
    assert crop.geometry.kernel.dilations == (3,)
    assert apply(crop, row(1, 2, 3, 4, 5, 6)).ravel().tolist() == [1, 2, 3]
    far = line([1], (2,), -1)
    assert far.dense_kernel().ravel().tolist() == [0, 1]
    assert apply(far, row(1, 2, 3)).ravel().tolist() == [3, 0, 0]


def test_emission_finds_the_common_dilation():
    map_ = line([1, 3, 5], (-4, 0, 2), -1)
    assert map_.dense_kernel().ravel().tolist() == [1, 0, 3, 5]
    assert map_.geometry.kernel.dilations == (2,)
    assert apply(map_, row(1, 2, 3, 4, 5, 6)).ravel().tolist() == [18, 26, 34, 42, 16, 20]


def test_zero_taps_that_keep_a_kernel_small_stay():
    """Without the last one its dilated kernel would reach to the next row that a pad of zero allows."""
    map_ = line([1.0, 2.0, 0.0], (-3, -1, 1), -1)
    assert (map_.geometry.kernel.shape, map_.trimmed().geometry.kernel.shape) == ((3,), (3,))
    assert line([0.0, 2.0, 0.0], (-1, 0, 1), -1).trimmed().geometry.kernel.shape == (1,)


def test_transposed_sum():
    merged = up([1, 2, 3, 4], (-1, 0, 1, 2)).plus(up([10, 20], (0, 1)))
    assert merged.dense_kernel().ravel().tolist() == [1, 12, 23, 4]
    assert apply(merged, row(1, 2, 3)).ravel().tolist() == [12, 25, 28, 49, 44, 69]


def test_a_convolution_behind_a_transposed_one():
    first, second = up([1, 2], (0, 1)), line([1, 10, 100], (-1, 0, 1), -1)
    assert border_fault(second, first, None) is None
    merged = second.after(first)
    assert merged.geometry == Geometry(1, 1, 1, ((-1, 0, 1, 2),), (2,), (2,), "transpose")
    assert merged.dense_kernel().ravel().tolist() == [100, 210, 21, 2]
    assert apply(merged, row(1, 2, 3)).ravel().tolist() == [210, 221, 422, 342, 634, 63]
    assert merged.geometry.macs == 2


def test_a_padded_convolution_does_not_see_what_a_transposed_one_cut_off():
    second = line([1, 1, 1], (-1, 0, 1), -1)
    for taps, size, stride, seen in (
        ((0, 1), 2, 2, False),
        ((0, 1), 3, 2, False),
        ((0, 1, 2), 2, 2, True),
        ((-1, 0, 1), 2, 2, True),
        ((-2, 0, 1), 3, 3, False),  # writes to -2 and to 1, never to -1
        ((-4, 0, 1), 3, 3, True),
    ):
        fault = border_fault(second, up([1] * len(taps), taps, size, stride), None)
        assert (fault is not None) == seen
    crop = line([1], (1,), -3)
    assert border_fault(crop, up([1, 1, 1], (-1, 0, 1)), np.ones(1)) is None
    assert "bias" in border_fault(second, up([1, 1], (0, 1)), np.ones(1))


def test_identity_in_groups_is_not_a_plain_diagonal():
    identity = Map.identity(4, 0).regrouped(2)
    assert identity.weight.tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]


def test_dilation_costs_no_memory():
    wide = Geometry(2, 2, 1, ((-36, 0, 36), (-36, 0, 36)), (1, 1), (-1, -1))
    assert math.prod(wide.weight_shape) == 36
    assert wide.kernel.shape == (3, 3)


def test_maps_on_different_grids_do_not_add():
    with pytest.raises(NotAligned, match="agree only for some"):
        line([1], (0,), -1).plus(line([1, 1, 1], (0, 1, 2), -3))
    with pytest.raises(NotAligned, match="stride"):
        line([1], (0,), -1).plus(line([1], (0,), -1, stride=2))
    assert line([1, 1, 1], (-1, 0, 1), -1, 2).plus(line([1, 1], (0, 1), -2, 2), (4,)).geometry.size == (-1,)


def test_weight_must_have_the_shape_of_its_geometry():
    with pytest.raises(ValueError, match="expected"):
        Map(Geometry.identity(3, 2), np.zeros((3, 3, 1, 1)))


def test_what_does_not_combine_with_transposed_and_same_padded_maps():
    transposed = Map(Geometry(1, 1, 1, ((0, 1),), (2,), (2,), "transpose"), np.ones((1, 1, 2)))
    same = Map(Geometry(1, 1, 1, ((0, 1, 2),), (2,), (-1,), "SAME_UPPER"), np.ones((1, 1, 3)))
    plain, point = line([1, 1], (0, 1), -2), line([3], (0,), -1)
    with pytest.raises(Inexact, match="stride"):
        line([1, 1], (0, 1), -2, stride=2).after(transposed)
    with pytest.raises(Inexact, match="SAME"):
        plain.after(same)
    assert border_fault(plain, same, None) is not None
    for special in (transposed, same):
        with pytest.raises(Inexact, match="in front of a transposed"):
            special.after(plain)
        assert border_fault(special, plain, None) is not None
        assert point.after(special).weight.tolist() == (3 * special.weight).tolist()
        assert special.after(point).weight.tolist() == (3 * special.weight).tolist()
        assert border_fault(special, point, None) is None
        assert "bias" in border_fault(special, point, np.ones(1))
    with pytest.raises(NotAligned):
        same.plus(Map(Geometry(1, 1, 1, ((0, 1),), (2,), (-1,), "SAME_UPPER"), np.ones((1, 1, 2))))
    assert same.plus(same).weight.tolist() == (2 * same.weight).tolist()


SIZES = range(1, 9)


@settings(max_examples=300, deadline=None)
@given(windows(), groups(), seeds, st.booleans())
def test_emitted_kernel_is_the_defining_equation(window, channels, seed, transposed):
    rng = np.random.default_rng(seed)
    map_ = (transposed_of if transposed else map_of)(window, *channels, rng)
    for _ in range(4):
        shape = [int(n) for n in rng.integers(1, 9 if len(window[0]) < 3 else 5, map_.geometry.axes)]
        x = rng.integers(-4, 5, (1, channels[1], *shape)).astype(float)
        if min(map_.geometry.result(shape), default=1) > 0:
            assert np.array_equal(apply(map_, x), direct(map_, x))
            assert np.array_equal(apply(map_.trimmed(), x), direct(map_, x))
            assert map_.trimmed().geometry.macs <= map_.geometry.macs


@settings(max_examples=300, deadline=None)
@given(st.data(), seeds)
def test_sum_is_the_sum(data, seed):
    rng = np.random.default_rng(seed)
    window = data.draw(windows())
    axes = len(window[0])
    first = map_of(window, 6, 6, data.draw(st.sampled_from([1, 2, 3, 6])), rng)
    alignment = (first.geometry.stride, first.geometry.size)
    second = map_of(
        data.draw(windows(aligned_to=alignment, axes=axes)), 6, 6, data.draw(st.sampled_from([1, 2, 3])), rng
    )
    total = first.plus(second)
    assert total.geometry.group == math.gcd(first.geometry.group, second.geometry.group)
    shape = [int(n) for n in rng.integers(1, 7, axes)]
    x = rng.integers(-4, 5, (1, 6, *shape)).astype(float)
    if min(n + c for n, c in zip(shape, first.geometry.size, strict=True)) >= 0:
        assert np.array_equal(apply(total, x), direct(first, x) + direct(second, x))


@settings(max_examples=150, deadline=None)
@given(st.data(), seeds, st.booleans())
def test_border_predicate_is_necessary_and_sufficient(data, seed, biased):
    """Composition agrees with its parts at eight consecutive sizes iff the predicate says so."""
    rng = np.random.default_rng(seed)
    first = map_of(data.draw(windows(axes=1)), 2, 2, data.draw(st.sampled_from([1, 2])), rng)
    second = map_of(data.draw(windows(axes=1)), 2, 2, data.draw(st.sampled_from([1, 2])), rng)
    bias = rng.integers(1, 4, 2).astype(float) if biased else None
    reach = max(abs(t) for t in (*first.geometry.taps[0], *second.geometry.taps[0]))
    start = 2 * (reach + 1) * (first.geometry.stride[0] + 1) + 2
    agree = True
    for size in range(start, start + 8):
        x = rng.integers(1, 5, (1, 2, size)).astype(float) * rng.choice([-1, 1], (1, 2, size))
        middle = direct(first, x) + (0.0 if bias is None else bias.reshape(1, 2, 1))
        if not middle.shape[2] or min(first.geometry.result([size])) + second.geometry.size[0] < 0:
            continue
        composed = second.after(first)
        merged = direct(composed, x)
        if bias is not None:
            merged = merged + second.response(bias).reshape(1, 2, 1)
        same = np.array_equal(merged, direct(second, middle))
        fault = border_fault(second, first, bias, [size])
        if fault is None:
            assert same
        agree &= same
    if border_fault(second, first, bias) is None:
        assert agree
    elif np.all(first.weight) and np.all(second.weight):
        assert not agree or not _can_tell(first, second, bias)


def _can_tell(first, second, bias):
    """Whether the sizes tried show every border situation (integer weights may cancel by chance)."""
    g = first.geometry
    grouped = g.group > 1 or second.geometry.group > 1
    return not grouped and bias is None and g.stride == (1,) and second.geometry.stride == (1,)


@settings(max_examples=300, deadline=None)
@given(st.data(), seeds, st.booleans())
def test_convolution_behind_a_transposed_one_is_exact_iff_the_predicate_says_so(data, seed, biased):
    """For weights without chance cancellation, at eight consecutive sizes, in one and two dimensions."""
    rng = np.random.default_rng(seed)
    axes = data.draw(st.integers(1, 2))
    first_channels, last = data.draw(groups()), data.draw(st.integers(1, 2))
    first = transposed_of(data.draw(windows(axes=axes)), *first_channels, rng)
    group = data.draw(st.sampled_from([g for g in (1, 2, 3) if first_channels[0] % g == 0]))
    second = map_of(data.draw(windows(axes=axes, stride=1)), group * last, first_channels[0], group, rng)
    first, second = (Map(m.geometry, rng.uniform(1, 2, m.weight.shape)) for m in (first, second))
    bias = rng.uniform(1, 2, first_channels[0]) if biased else None
    composed = second.after(first)
    shift = None if bias is None else second.response(bias)
    fault, agree = border_fault(second, first, bias), True
    start = 2 + max(abs(t) for m in (first, composed) for taps in m.geometry.taps for t in taps)
    for size in (1, *range(start, start + 8)):
        shape = [size, 2][:axes] if size == 1 else [size, start][:axes]
        x = rng.uniform(1, 2, (1, first_channels[1], *shape))
        if min(first.geometry.result(shape)) < 1 or min(composed.geometry.result(shape)) < 1:
            assert size == 1
            continue
        middle, merged = (direct(m, x) + _column(v, axes) for m, v in ((first, bias), (composed, shift)))
        expected = direct(second, middle)
        assert merged.shape == expected.shape
        same = np.allclose(merged, expected, rtol=1e-12, atol=0)
        if size in (1, start) and merged[0, 0].size < 400:
            assert np.allclose(apply(composed, x, shift), merged, rtol=1e-12, atol=0)
        if fault is None or border_fault(second, first, bias, shape) is None:
            assert same
        agree &= same
    assert agree == (fault is None)


def _column(vector, axes):
    """A bias as it is added to images."""
    return 0.0 if vector is None else vector.reshape(-1, *[1] * axes)


@settings(max_examples=200, deadline=None)
@given(windows(), groups(), seeds)
def test_scaling_before_and_after(window, channels, seed):
    rng = np.random.default_rng(seed)
    map_ = map_of(window, *channels, rng)
    before, after = rng.integers(-4, 5, channels[1]).astype(float), rng.integers(-4, 5, channels[0]).astype(float)
    axes = map_.geometry.axes
    x = rng.integers(-4, 5, (1, channels[1], *[5] * axes)).astype(float)
    scaled = Map.diagonal(after, axes).after(map_.after(Map.diagonal(before, axes)))
    expected = direct(map_, x * before.reshape(-1, *[1] * axes)) * after.reshape(-1, *[1] * axes)
    assert np.array_equal(direct(scaled, x), expected)


@settings(max_examples=200, deadline=None)
@given(windows(), groups(), seeds)
def test_regrouping_changes_nothing(window, channels, seed):
    map_ = map_of(window, *channels, np.random.default_rng(seed))
    x = np.random.default_rng(seed).integers(-4, 5, (1, channels[1], *[4] * map_.geometry.axes)).astype(float)
    for group in {1, map_.geometry.group}:
        assert np.array_equal(direct(map_.regrouped(group), x), direct(map_, x))


@settings(max_examples=100, deadline=None)
@given(groups(), seeds)
def test_matrices_are_maps_without_axes(channels, seed):
    rng = np.random.default_rng(seed)
    first = map_of(([], [], [], [], []), *channels, rng)
    second = map_of(([], [], [], [], []), 3, channels[0], 1, rng)
    x = rng.integers(-4, 5, (2, channels[1])).astype(float)
    assert border_fault(second, first, np.ones(channels[0])) is None
    product = dense(second) @ dense(first)
    assert np.array_equal(direct(second.after(first), x), x @ product.T)


@settings(max_examples=100, deadline=None)
@given(windows(), groups(), seeds)
def test_response_is_the_value_inside_a_constant_image(window, channels, seed):
    rng = np.random.default_rng(seed)
    map_ = map_of(window, *channels, rng)
    vector = rng.integers(-4, 5, channels[1]).astype(float)
    full = dense(map_)
    assert np.array_equal(map_.response(vector), full.reshape(*full.shape[:2], -1).sum(2) @ vector)
    read = np.any(full.reshape(full.shape[0], full.shape[1], -1), axis=(0, 2))
    assert np.array_equal(map_.reads, read)


@st.composite
def channel_copies(draw, channels=None):
    """Draw the geometry of a map that picks or places channels."""
    inputs = draw(st.integers(1, 6)) if channels is None else channels
    low = draw(st.integers(0, inputs - 1))
    high = draw(st.integers(low + 1, inputs))
    outputs = draw(st.integers(high - low, 8))
    start = draw(st.integers(0, outputs - (high - low)))
    return Geometry.channels(outputs, inputs, (start, start + high - low), (low, high), 1)


@settings(max_examples=400, deadline=None)
@given(st.data(), seeds)
def test_picking_and_placing_channels(data, seed):
    """Any composition of convolutions and channel copies: right numbers, true spans, true groups."""
    rng = np.random.default_rng(seed)
    map_ = Map.channels(data.draw(channel_copies()))
    steps = [map_]
    x = rng.integers(-4, 5, (1, map_.geometry.inputs, 7)).astype(float)
    expected = direct(map_, x)
    for _ in range(data.draw(st.integers(1, 4))):
        channels = steps[-1].geometry.outputs
        if data.draw(st.booleans()):
            step = Map.channels(data.draw(channel_copies(channels)), 2.0)
        else:
            group = data.draw(st.sampled_from([g for g in range(1, channels + 1) if not channels % g]))
            outputs = group * data.draw(st.integers(1, 2))
            step = map_of(([2], [1], [0], [0], [1]), outputs, channels, group, rng, bound=2)
        expected = direct(step, expected)
        steps.append(step)
    try:
        total = steps[0]
        for step in steps[1:]:
            total = step.after(total)
    except Vanishes:
        assert not expected.any()
        return
    g = total.geometry
    assert np.array_equal(direct(total, x), expected)
    whole = total.reading_all
    assert np.array_equal(dense(whole), dense(total))
    assert whole.geometry.cols is None
    assert g.macs == whole.weight[:, :, 0].size * g.kernel.taps
    rows = slice(*(g.rows or (0, g.outputs)))
    assert np.array_equal(apply(whole, x)[0], expected[0][rows])
    vector = rng.integers(-4, 5, g.inputs).astype(float)
    assert np.array_equal(total.response(vector), dense(total).sum(axis=2) @ vector)
    assert np.array_equal(total.reads, np.any(dense(total), axis=(0, 2)))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), seeds)
def test_split_convolve_concat_is_a_grouped_convolution(parts, width, height, seed):
    rng = np.random.default_rng(seed)
    total = None
    for k in range(parts):
        pick = Map.channels(Geometry.channels(width, parts * width, (0, width), (k * width, (k + 1) * width), 1))
        place = Map.channels(Geometry.channels(parts * height, height, (k * height, (k + 1) * height), (0, height), 1))
        inner = rng.choice([g for g in range(1, 4) if not width % g and not height % g])
        branch = place.after(map_of(([3], [1], [1], [1], [1]), height, width, int(inner), rng).after(pick))
        total = branch if total is None else total.plus(branch)
    assert total.geometry.group % parts == 0
    assert total.geometry.rows is None
    x = rng.integers(-4, 5, (1, parts * width, 5)).astype(float)
    assert np.array_equal(apply(total, x), direct(total, x))


@settings(max_examples=300, deadline=None)
@given(st.data(), seeds)
def test_sums_of_picked_and_placed_channels(data, seed):
    """The sum of maps with any rows, columns and groups has the numbers of both."""
    rng = np.random.default_rng(seed)
    outputs, inputs = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 8))
    maps = []
    for _ in range(2):
        top, left = data.draw(st.integers(0, outputs - 1)), data.draw(st.integers(0, inputs - 1))
        height, width = data.draw(st.integers(1, outputs - top)), data.draw(st.integers(1, inputs - left))
        place = Map.channels(Geometry.channels(outputs, height, (top, top + height), (0, height), 1))
        pick = Map.channels(Geometry.channels(width, inputs, (0, width), (left, left + width), 1))
        shared = [g for g in range(1, 9) if not height % g and not width % g]
        middle = map_of(([1], [1], [0], [0], [1]), height, width, data.draw(st.sampled_from(shared)), rng)
        maps.append(place.after(middle).after(pick))
    total = maps[0].plus(maps[1])
    assert np.array_equal(dense(total), dense(maps[0]) + dense(maps[1]))
