"""The two models of a check: what they are made of, and what can be said of them before they run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import onnx

from onnxrep import files
from onnxrep.escape import printable
from onnxrep.proof import judge
from onnxrep.proof.errors import CannotRun
from onnxrep.proof.twin import FLOATS


@dataclass(frozen=True)
class Side:
    """One of the two models: its message, its bytes if they are at hand, and where its external data lies."""

    model: onnx.ModelProto
    data: bytes | None
    folder: files.Folder | None

    @cached_property
    def message(self) -> bytes:
        """The bytes of the model.

        Raises:
            CannotRun: it is larger than a protobuf message may be.

        """
        if self.data is not None:
            return self.data
        try:
            return files.serialized(self.model)
        except files.MessageTooLarge:
            raise CannotRun("the model is larger than 2 GiB; keep its weights in external data") from None

    @cached_property
    def serialized(self) -> bytes:
        """The bytes of the model, as ONNX Runtime can read them: it follows no links.

        Raises:
            CannotRun: see :attr:`message`.

        """
        if self.folder is not None and self.folder.cache is not None:
            return self.folder.unlinked(self.model).SerializeToString()
        return self.message

    @cached_property
    def outputs(self) -> list[str]:
        """The names of the model's outputs."""
        return [v.name for v in self.model.graph.output]

    def with_outputs(self, names: Iterable[str]) -> bytes:
        """Return the bytes of the model with these values as outputs too: what is appended to a message adds to it."""
        more = onnx.ModelProto()
        for name in names:
            more.graph.output.add(name=name)
        return self.serialized + more.SerializeToString() if more.graph.output else self.serialized


def interface_fault(before: onnx.ModelProto, after: onnx.ModelProto) -> str:
    """Say how the interfaces of two models differ: names, order, types, declared shapes; empty if they do not."""
    for kind in ("input", "output"):
        old, new = _interface(before, kind), _interface(after, kind)
        if [v.name for v in old] != [v.name for v in new]:
            return f"{kind}s {[v.name for v in new]} instead of {[v.name for v in old]}"
        for a, b in zip(old, new, strict=True):
            if a.type != b.type:
                return f"{kind} {printable(a.name)} is declared with another type or shape"
    return ""


def _interface(model: onnx.ModelProto, kind: str) -> list[onnx.ValueInfoProto]:
    """Return the inputs or outputs that a caller sees."""
    hidden = {t.name for t in model.graph.initializer} if kind == "input" and model.ir_version < 4 else set()
    return [v for v in getattr(model.graph, kind) if v.name not in hidden]


def roundoff_of(before: onnx.ModelProto, after: onnx.ModelProto) -> float:
    """Return the unit roundoff of the coarsest type among the outputs and the weights that only the new model has."""
    known = {t.name for t in files.tensors(before)}
    kinds: set[int] = {t.data_type for t in files.tensors(after) if t.data_type in FLOATS and t.name not in known}
    kinds |= {v.type.tensor_type.elem_type for v in after.graph.output if v.type.tensor_type.elem_type in FLOATS}
    return max((judge.ROUNDOFF[k] for k in kinds), default=judge.ROUNDOFF[onnx.TensorProto.FLOAT])
