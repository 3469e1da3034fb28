"""Linear layers, adapters and heads: blocks whose convolutions are matrix products."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from models.blocks.base import Block, Build, chain, concat, same, total
from models.blocks.tokens import (
    LINE,
    TOKENS,
    VECTORS,
    WIDTH,
    Row,
    bn,
    conv,
    conv_bn,
    crop,
    family,
    flattened,
    gemm,
    matmul,
    matmul_left,
    mul,
    op,
    pooled,
    relu,
    shaped,
    shaped_computed,
    shaped_like,
    shift,
    turn,
)
from models.net import Net

_MATMUL = {"MatMul": 1}
_LINEAR = {"MatMul": 1, "Add": 1}
_SWAP = turn(0, 2, 1)
_HALF = mul(2.0, kind="Div")
_CHANNELS_LAST = turn(0, 2, 3, 1)
_CHANNELS_FIRST = turn(0, 3, 1, 2)


def blocks() -> Iterator[Block]:
    """Yield every variation."""
    yield from _heads()
    yield from _heads_of_images()
    yield from _linear_bn()
    yield from _rep_bn()
    yield from _next_vit()
    yield from _rep_adapter()
    yield from _lora()
    yield from _gemm()
    yield from _matmul()
    yield from _matmul_from_left()


# -- heads --------------------------------------------------------------------------------------------------------


def _average(head: Build, count: int = 2) -> Build:
    """Return the mean of heads by Add and Div."""
    return chain(total(*(head,) * count), mul(float(count), kind="Div"))


def _shared_norm(net: Net, x: str) -> str:
    """Add two heads behind one BatchNormalization, as an exporter does that merges equal nodes."""
    return _average(gemm())(net, bn(net, x))


def _mean_op(net: Net, x: str) -> str:
    """Add two heads and a Mean."""
    heads = [chain(bn, gemm())(net, x) for _ in range(2)]
    return net.op("Mean", *heads)


def _heads() -> Iterator[Block]:
    """Yield classifiers on vectors."""
    head, one = chain(bn, gemm(12)), {"Gemm": 1}
    yield from family(
        "Averaged heads",
        "RepViT, RepNeXt, LeViT (timm)",
        "(G1(BN1 x) + G2(BN2 x)) / 2",
        [
            Row("two Gemm, Div by 2", _average(head), one),
            Row("Mul by 0.5", chain(total(head, head), mul(0.5)), one),
            Row("one BatchNormalization for both heads", _shared_norm, one),
            Row("Mean of two heads", _mean_op, one),
            Row("MatMul and Add", _average(chain(bn, matmul(12, bias=True))), one),
            Row("four heads", _average(head, 4), one),
            Row("no BatchNormalization", _average(gemm(12)), one),
            Row("one head with a norm, one without", chain(total(head, gemm(12)), _HALF), one),
            Row("untransposed weights, no bias", _average(chain(bn, gemm(12, flip=False, summand="none"))), one),
        ],
        shape=VECTORS,
    )
    yield from family("Normed head", "EfficientViT (timm)", "Linear(BN x)", [Row("one Gemm", head, one)], shape=VECTORS)


def _heads_of_images() -> Iterator[Block]:
    """Yield classifiers behind a global pooling."""
    heads = _average(chain(bn, gemm(12)))
    flat = {"Flatten": 1, "Gemm": 1}
    yield from family(
        "Averaged heads on an image",
        "RepViT, RepNeXt, LeViT (timm)",
        "pool; (G1(BN1 x) + G2(BN2 x)) / 2",
        [
            Row(
                "GlobalAveragePool and Flatten",
                chain(op("GlobalAveragePool"), flattened(1), heads),
                {"GlobalAveragePool": 1, **flat},
            ),
            Row("ReduceMean", chain(pooled(keep=False), heads), {"ReduceMean": 1, "Gemm": 1}),
            Row(
                "ReduceMean that keeps the axes, and Flatten",
                chain(pooled(keep=True), flattened(1), heads),
                {"ReduceMean": 1, **flat},
            ),
        ],
        exact=False,
    )


# -- Linear and BatchNormalization ----------------------------------------------------------------------------------


def legacy_linear_bn(outputs: int = WIDTH) -> Build:
    """Return Linear_BN in the older exporter's form: MatMul, Flatten, BN, Shape, Reshape."""

    def build(net: Net, x: str) -> str:
        value = matmul(outputs)(net, x)
        return shaped_like(net, bn(net, flattened(2)(net, value)), value)

    return build


def dynamo_linear_bn(outputs: int = WIDTH, bias: bool = False) -> Build:
    """Return Linear_BN in the newer exporter's form for a static number of tokens: MatMul, Reshape, BN, Reshape."""
    return chain(matmul(outputs, bias=bias), shaped(-1, outputs), bn, shaped(-1, 4, outputs))


def _linear_bn() -> Iterator[Block]:
    """Yield BatchNormalization over Linear."""
    system, used, form = "Linear_BN", "LeViT, EfficientViT, TinyViT (timm)", "BN(Linear x)"
    legacy = legacy_linear_bn()
    mlp = chain(legacy_linear_bn(16), relu, legacy)
    yield from family(
        system,
        used,
        form,
        [
            Row("Flatten, BN, Shape, Reshape", legacy, _LINEAR),
            Row("followed by Relu", chain(legacy, relu), {**_LINEAR, "Relu": 1}),
            Row("residual into the Linear", total(same, legacy), _LINEAR),
            Row("MLP with residual", total(same, mlp), {"MatMul": 2, "Add": 3, "Relu": 1}),
            Row("two in a row, the second no dearer", chain(legacy, legacy_linear_bn(16)), _LINEAR),
            Row("two branches on one input", total(legacy, legacy), _LINEAR),
            Row("every second token", chain(crop(0, 0, 2, [1]), legacy), {**_LINEAR, "Slice": 1}),
        ],
        shape=TOKENS,
    )
    dynamo = dynamo_linear_bn()
    static: tuple[int | str, ...] = ("batch", 4, WIDTH)
    yield from family(
        system,
        used,
        form,
        [
            Row("Reshape, BN, Reshape", dynamo, _LINEAR),
            Row("Reshape, BN, Reshape, with bias", dynamo_linear_bn(bias=True), _LINEAR),
            Row("Reshape, BN, Reshape, residual", total(same, dynamo), _LINEAR),
        ],
        shape=static,
    )
    yield from family(
        system,
        used,
        form,
        [
            Row("Gemm and BN on vectors", chain(gemm(12), bn), {"Gemm": 1}),
            Row("MatMul and BN on vectors", chain(matmul(12), bn), {"Gemm": 1}),
        ],
        shape=VECTORS,
    )
    sandwich = chain(_CHANNELS_LAST, matmul(bias=True), _CHANNELS_FIRST)
    moved = {"Transpose": 2, **_LINEAR}
    yield from family(
        "Linear between Transposes",
        "ConvNeXt, PVT, MetaFormer",
        "T; Linear; T",
        [
            Row("BN behind", chain(sandwich, bn), moved),
            Row("BN in front", chain(bn, sandwich), moved),
            Row("two Linears on one image", total(sandwich, sandwich), moved),
        ],
    )


def rep_bn(alpha: float = 0.5) -> Build:
    """Return SLAB's RepBN on tokens: T; BN(x) + alpha * x; T."""
    return chain(_SWAP, total(bn, mul([alpha])), _SWAP)


def _padded_window(net: Net, x: str) -> str:
    """Add RepBN, a zero padding of the tokens, and a Linear: the padding is behind the shift."""
    value = shaped(-1, 2, 2, WIDTH)(net, rep_bn()(net, x))
    return matmul(bias=True)(net, net.op("Pad", value, net.constant([0, 0, 0, 0, 0, 1, 1, 0], dtype=np.int64)))


def _rep_bn() -> Iterator[Block]:
    """Yield RepBN."""
    system, used, form = "SLAB RepBN", "SLAB (Swin, PVT, DeiT)", "T; BN(x) + alpha*x; T; Linear"
    dense = matmul(bias=True)
    heads = concat(*(chain(dense, relu),) * 3, axis=2)
    mlp = chain(rep_bn(), matmul(16, bias=True), relu, dense)
    yield from family(
        system,
        used,
        form,
        [
            Row("before one Linear", chain(rep_bn(), dense), _LINEAR),
            Row("bias first", chain(rep_bn(), matmul(bias=True, first=True)), _LINEAR),
            Row("alpha 0", chain(rep_bn(0.0), dense), _LINEAR),
            Row("before q, k and v", chain(rep_bn(), heads), {"MatMul": 3, "Add": 3, "Relu": 3, "Concat": 1}),
            Row("with residual", total(same, chain(rep_bn(), dense)), _LINEAR),
            Row("MLP with residual", total(same, mlp), {"MatMul": 2, "Add": 3, "Relu": 1}),
        ],
        shape=TOKENS,
    )
    untouched = {"Transpose": 2, "BatchNormalization": 1, "Mul": 1, "Add": 2, "Reshape": 1, "Pad": 1, "MatMul": 1}
    yield from family(
        system,
        used,
        form,
        [Row("padded windows", _padded_window, untouched)],
        shape=("batch", 4, WIDTH),
    )


def _next_vit() -> Iterator[Block]:
    """Yield NextViT's attention, whose projections take over the BatchNormalizations in front of them."""
    system, used, form = "NextViT merge_pre_bn", "NextViT (timm)", "BN; Reshape; T; q,k,v Linear; with sr also AP; BN"
    rectified = chain(matmul(bias=True), relu)
    to_tokens = chain(bn, shaped(0, 0, -1), _SWAP)
    one = {"Reshape": 1, "Transpose": 1, **_LINEAR, "Relu": 1}
    joint = {"Reshape": 1, "Transpose": 1, "MatMul": 3, "Add": 3, "Relu": 3, "Concat": 1}
    rows = [
        Row("q, k and v", chain(to_tokens, concat(*(rectified,) * 3, axis=2)), joint),
        Row("one Linear", chain(to_tokens, rectified), one),
        Row("computed sizes", chain(bn, shaped_computed(None, WIDTH, -1), _SWAP, rectified), one),
        Row("BN before and behind the movement", chain(to_tokens, _SWAP, bn, _SWAP, rectified), one),
    ]
    yield from family(system, used, form, rows)
    left = {"Reshape": 2, "AveragePool": 1, "Transpose": 3, "MatMul": 5, "Add": 3, "Softmax": 1}
    rows = [Row("attention with a pooled key", _pooled_attention, left)]
    yield from family(system, used, form, rows, sizes=(2, 3, 5, 8), exact=False)


def _pooled_attention(net: Net, x: str) -> str:
    """Add an attention whose keys and values are pooled, with a BatchNormalization before and behind the pool."""
    line = chain(bn, shaped(0, 0, -1))(net, x)
    dense = matmul(bias=True)
    query = chain(_SWAP, dense)(net, line)
    reduced = chain(op("AveragePool", kernel_shape=[4], strides=[4]), bn, _SWAP)(net, line)
    key, value = _SWAP(net, dense(net, reduced)), dense(net, reduced)
    weights = net.op("Softmax", net.op("MatMul", query, key), axis=-1)
    return net.op("MatMul", weights, value)


# -- adapters ------------------------------------------------------------------------------------------------------


def rep_adapter(hidden: int = 4, group: int = 2, scale: float = 0.5) -> Build:
    """Return RepAdapter: x + s * B(A x) in channels-first layout, B grouped."""
    branch = chain(conv(hidden, 1, bias=True), conv(WIDTH, 1, group=group, bias=True), mul(scale))
    return chain(_SWAP, total(branch, same), _SWAP)


def _rep_adapter() -> Iterator[Block]:
    """Yield RepAdapter."""
    dense = matmul(bias=True)
    rectified = chain(dense, relu)
    yield from family(
        "RepAdapter",
        "RepAdapter (ViT, ConvNeXt)",
        "x + s*B(g2)(A x); Linear",
        [
            Row("before one Linear", chain(rep_adapter(), dense), _LINEAR),
            Row("hidden width 2, 1 group", chain(rep_adapter(2, 1), matmul(24, bias=True)), _LINEAR),
            Row("negative scale", chain(rep_adapter(scale=-2.0), dense), _LINEAR),
            Row("with RepBN in front", chain(rep_bn(), rep_adapter(), dense), _LINEAR),
            Row(
                "before q, k and v",
                chain(rep_adapter(), concat(*(rectified,) * 3, axis=2)),
                {"MatMul": 3, "Add": 3, "Relu": 3, "Concat": 1},
            ),
        ],
        shape=TOKENS,
    )


def adapter(rank: int, scale: float = 0.5) -> Build:
    """Return LoRA's adapter s * ((x A) B)."""
    return chain(matmul(rank), matmul(), mul(scale))


def _lora() -> Iterator[Block]:
    """Yield LoRA beside and without a base layer."""
    base, dropped = matmul(), chain(op("Dropout"), adapter(2))
    low = {"MatMul": 2}
    yield from family(
        "LoRA",
        "loralib, PEFT",
        "x W + s*((x A) B)",
        [
            Row("one adapter", total(base, adapter(2)), _MATMUL),
            Row("two adapters", total(base, adapter(2), adapter(3, -1.0)), _MATMUL),
            Row("bias on the base", total(matmul(bias=True, first=True), adapter(2)), _LINEAR),
            Row("bias behind the sum", chain(total(base, adapter(2)), shift([1.0] * WIDTH)), _LINEAR),
            Row("Dropout in the adapter", total(base, dropped), _MATMUL),
            Row("wider output", total(matmul(16), chain(matmul(2), matmul(16), mul(2.0))), _MATMUL),
            Row("scale between A and B", total(base, chain(matmul(2), mul(2.0), matmul())), _MATMUL),
            Row("scale 0", total(base, adapter(2, 0.0)), _MATMUL),
        ],
        shape=TOKENS,
    )
    yield from family(
        "LoRA on vectors",
        "loralib, PEFT",
        "Gemm(x) + s*((x A) B)",
        [
            Row("Gemm as the base", total(gemm(), adapter(2)), {"Gemm": 1}),
            Row("three Gemm", total(gemm(), chain(gemm(2), gemm(), mul(0.5))), {"Gemm": 1}),
        ],
        shape=VECTORS,
    )
    yield from family(
        "Low-rank product",
        "compressed Linear layers",
        "(x A) B",
        [
            Row("rank 6 of 8 pays", chain(matmul(6), matmul()), _MATMUL),
            Row("rank 4 of 8 pays", chain(matmul(4), matmul()), _MATMUL),
            Row("rank 3 of 8 does not pay", chain(matmul(3), matmul()), low),
            Row("rank 6, biases", chain(matmul(6, bias=True), matmul(bias=True)), _LINEAR),
            Row("rank 2 with residual", total(same, chain(matmul(2), matmul())), {"MatMul": 2, "Add": 1}),
        ],
        shape=TOKENS,
    )


# -- plain products -------------------------------------------------------------------------------------------------


def _gemm() -> Iterator[Block]:
    """Yield the forms of Gemm."""
    one = {"Gemm": 1}
    summed = {"Gemm": 2, "Add": 1}
    yield from family(
        "Gemm",
        "heads, recommender and tabular networks",
        "alpha * x op(B) + beta * C",
        [
            Row("alpha and beta, then BN", chain(gemm(12, alpha=0.5, beta=2.0), bn), one),
            Row("alpha and beta, summed", total(gemm(12, alpha=0.5, beta=-1.0), gemm(12, flip=False)), one),
            Row("scalar C, then BN", chain(gemm(12, summand="scalar"), bn), one),
            Row("C as a row, then scale", chain(gemm(12, summand="row"), mul([0.5])), one),
            Row("no C, then BN", chain(gemm(12, summand="none", alpha=2.0), bn), one),
            Row("chain that pays", chain(gemm(8), gemm(4)), one),
            Row("chain that does not pay", chain(gemm(2), gemm(8)), {"Gemm": 2}),
            Row("residual", total(gemm(), same), one),
            Row("BN residual", total(gemm(), bn), one),
            Row("Gemm beside MatMul", total(gemm(), matmul()), one),
        ],
        shape=VECTORS,
    )
    column = total(gemm(12, summand="column"), gemm(12))
    yield from family(
        "Gemm",
        "heads, recommender and tabular networks",
        "alpha * x op(B) + beta * C",
        [Row("C with one number per sample", column, summed, ("not-per-channel",))],
        shape=(2, WIDTH),
    )


def _matmul() -> Iterator[Block]:
    """Yield products of a batch of matrices with one constant on the right."""
    batched: tuple[int | str, ...] = ("batch", 3, "tokens", WIDTH)
    yield from family(
        "MatMul with a constant on the right",
        "transformers",
        "x W1 + x W2",
        [
            Row("rank 4", total(matmul(), matmul()), _MATMUL),
            Row("W of shape [1, C, O]", total(matmul(ones=1), matmul(ones=2)), _MATMUL),
            Row("residual", total(same, matmul()), _MATMUL),
            Row("scaled residual and scale per channel", total(mul(0.5), chain(matmul(), mul([2.0] * WIDTH))), _MATMUL),
            Row("difference", _difference, _MATMUL),
            Row("one W per head", total(_per_head, _per_head), {"MatMul": 2, "Add": 1}),
        ],
        shape=batched,
    )
    projections = concat(matmul(), matmul(), matmul(4), axis=2)
    biased = concat(*(matmul(bias=True),) * 3, axis=2)
    yield from family(
        "Concat of projections",
        "attention with separate q, k, v",
        "Concat(x Wq, x Wk, x Wv)",
        [Row("no bias", projections, _MATMUL), Row("biases", biased, _LINEAR)],
        shape=TOKENS,
    )


def _difference(net: Net, x: str) -> str:
    """Add the difference of two products."""
    return net.op("Sub", matmul()(net, x), matmul()(net, x))


def _per_head(net: Net, x: str) -> str:
    """Add a product with another matrix for each of three heads."""
    return net.op("MatMul", x, net.constant(net.draw(3, WIDTH, WIDTH)), channels=WIDTH)


def _matmul_from_left() -> Iterator[Block]:
    """Yield products with one constant on the left: 1x1 convolutions of ``[N, C, L]``."""
    yield from family(
        "MatMul from the left",
        "state-space and mixer exports",
        "W1 x + W2 x",
        [
            Row("two products", total(matmul_left(), matmul_left()), _MATMUL),
            Row("then BN: no cheaper as an Add", chain(matmul_left(), bn), {"MatMul": 1, "BatchNormalization": 1}),
            Row("bias, then BN", chain(matmul_left(), shift(), bn), _LINEAR),
            Row("residual", total(same, matmul_left()), _MATMUL),
            Row("chain that pays", chain(matmul_left(6), matmul_left()), _MATMUL),
            Row("BN in front and behind", chain(bn, matmul_left(), bn), _LINEAR),
            Row("beside a Conv", total(conv_bn(None, 3), matmul_left()), {"Conv": 1}),
        ],
        shape=LINE,
    )
