"""A pass for scripts of one's own: a model goes in, the folded one comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper

from onnxrep import files, pipeline
from onnxrep.errors import UsageError
from onnxrep.options import Options
from onnxrep.report import records


def fold(
    model: str | Path | bytes | onnx.ModelProto | gs.Graph,
    *,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    kinds: Sequence[str] = (),
    select: Callable[[records.Fold], bool] | None = None,
) -> Any:
    """Return a model with all folded that may fold. Each fold is proven; the models are not run and compared.

    Args:
        model: an onnx-graphsurgeon graph or a ModelProto, neither of which is changed; or a path, or a model's bytes.
        only: patterns as of :mod:`fnmatch` for names of nodes or of their outputs: a region folds only if one of its
            nodes matches one; empty for all.
        exclude: the same for nodes that stay as they are; what is around them folds without them.
        kinds: ``merge`` (parallel branches become one), ``fuse`` (nodes in sequence become one) or ``move`` (neighbours
            change places); empty for all.
        select: is given the record of each fold, proven and not yet made, and says whether to make it.

    Returns:
        A graph for a graph, and a ModelProto for all else. It holds its weights itself, those of a path too.

    Raises:
        UsageError: a file is missing, or the result is too large for one message.
        InvalidModel, UnsupportedModel: see :func:`onnxrep.optimize`.

    Examples:
        >>> from onnx import parser
        >>> model = parser.parse_model('''
        ...     <ir_version: 8, opset_import: ["" : 17]>
        ...     net (float[1,1,4,4] x) => (float[1,1,4,4] y)
        ...     <float[1,1,1,1] w = {2.0}, float[1,1,1,1] v = {3.0}>
        ...     { a = Conv(x, w)  b = Conv(x, v)  y = Add(a, b) }
        ... ''')
        >>> [node.op_type for node in fold(model).graph.node]
        ['Conv']
        >>> [node.op_type for node in fold(model, exclude=["b"]).graph.node]
        ['Conv', 'Conv', 'Add']
        >>> [node.op_type for node in fold(model, select=lambda fold: fold.macs[1] > 8).graph.node]
        ['Conv', 'Conv', 'Add']
        >>> import onnx_graphsurgeon as gs
        >>> [node.op for node in fold(gs.import_onnx(model)).nodes]
        ['Conv']

    """
    source = pipeline.load(model)
    options = Options(verify=False, only_nodes=only, exclude_nodes=exclude, kinds=kinds, select=select)
    folded = pipeline.optimize(source, options=options).model
    if source.folder is not None:
        _take_in(folded, source.folder)
    return gs.import_onnx(folded) if isinstance(model, gs.Graph) else folded


def _take_in(model: onnx.ModelProto, folder: files.Folder) -> None:
    """Put external data into the message."""
    outside = [t for t in files.tensors(model) if files.is_external(t)]
    if sum(map(files.tensor_bytes, outside)) + model.ByteSize() > files.LARGEST_MESSAGE:
        raise UsageError("the model is too large for one message; use onnxrep.optimize(path, output)")
    for tensor in outside:
        values = folder.array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
