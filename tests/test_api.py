"""The public interface: what it is, and that its documentation is there."""

from __future__ import annotations

import inspect
import pkgutil

import onnx
import onnx_graphsurgeon as gs
import pytest

import onnxrep
from models.blocks import seed_blocks
from onnxrep import reasons
from onnxrep.errors import OnnxrepError
from tests.tools import ops

MODEL = next(iter(seed_blocks())).model()


def test_the_names():
    names = "BatchOptions Comparison Options Result __version__ bench fold inspect optimize run_batch verify"
    assert sorted(onnxrep.__all__) == names.split()
    for name in onnxrep.__all__:
        assert getattr(onnxrep, name)
        assert name == "__version__" or inspect.getdoc(getattr(onnxrep, name))
    with pytest.raises(AttributeError, match="no attribute"):
        onnxrep.nothing  # noqa: B018


def test_functions_are_not_hidden_by_modules():
    """A submodule of the same name would take the function's place once it is imported."""
    modules = {m.name for m in pkgutil.iter_modules(onnxrep.__path__)}
    assert not modules & set(onnxrep.__all__)


@pytest.mark.parametrize("form", ["path", "text", "bytes", "message", "graph"])
def test_a_model_in_any_form(tmp_path, form):
    path = tmp_path / "model.onnx"
    onnx.save(MODEL, path)
    model = {
        "path": path,
        "text": str(path),
        "bytes": path.read_bytes(),
        "message": MODEL,
        "graph": gs.import_onnx(MODEL),
    }[form]
    before = MODEL.SerializeToString(deterministic=True)
    result = onnxrep.optimize(model)
    assert result.ok
    assert ops(result.model) == ["Conv", "Relu"]
    assert MODEL.SerializeToString(deterministic=True) == before
    assert onnxrep.inspect(model).folds == result.report.folds
    assert onnxrep.verify(model, result.model).verdict == "verified"


def test_every_error_is_one_that_callers_catch_anyway():
    def below(kind):
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    for kind in below(OnnxrepError):
        assert issubclass(kind, ValueError | OSError)
        assert kind.exit_code in (1, 2)


def test_every_reason_is_explained_and_every_one_used_is_listed():
    assert all(text.endswith(".") for text in reasons.REASONS.values())
    assert not reasons.SILENT & reasons.REASONS.keys()
    import re
    from pathlib import Path

    used = set()
    for path in Path(onnxrep.__file__).parent.rglob("*.py"):
        used |= set(re.findall(r'(?:Decline|note|refuse|refusal)\(\s*(?:[\w.]+, )*"([a-z-]+)"', path.read_text()))
    used |= {"certificate", "old-opset", "taken-back", "unproven"}
    assert used <= reasons.REASONS.keys() | reasons.SILENT
    assert reasons.REASONS.keys() <= used
