"""A model's bytes, written piece by piece: those of protobuf's own library."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from google.protobuf.message import EncodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from onnx import helper, numpy_helper

from models import skeletons
from models.net import Net
from onnxrep import Options, files, optimize
from onnxrep.errors import OutputError
from onnxrep.files import message
from onnxrep.proof.errors import CannotRun
from onnxrep.proof.sides import Side
from tests.test_check import chain


def pieces(monkeypatch):
    """Let every message be written piece by piece."""
    at_any_size(monkeypatch)
    monkeypatch.setattr(message, "_checked", lambda data: pytest.fail("written as one"))


def at_any_size(monkeypatch):
    monkeypatch.setattr(message, "_SMALL", 0)
    monkeypatch.setattr(message, "_EACH", 0)


def same(model):
    return files.serialized(model) == model.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    "name", ["repvgg_a0/train_legacy_bn", "yolov9t/train_dynamo", "vit_tiny_patch16_224/train_legacy"]
)
def test_exports(name, monkeypatch):
    pieces(monkeypatch)
    assert same(skeletons.fill(name))


def test_every_field_that_a_model_may_have(monkeypatch):
    """With all that ONNX knows besides nodes and weights, fields that are set to nothing, and names beyond ASCII."""
    pieces(monkeypatch)
    model = chain(1)
    model.producer_version = "1"
    model.producer_name, model.doc_string, model.model_version = "", "größer", -3
    model.metadata_props.add(key="k", value="")
    model.training_info.add().algorithm.name = "train"
    model.functions.append(helper.make_function("d", "F", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], []))
    model.configuration.add(name="two", num_devices=2)
    graph = model.graph
    graph.doc_string = "a graph"
    graph.metadata_props.add(key="", value="v")
    graph.quantization_annotation.add(tensor_name="t")
    graph.sparse_initializer.add().dims.extend([2, 2])
    graph.value_info.add(name="Größe")
    graph.initializer.append(helper.make_tensor("typed", onnx.TensorProto.INT32, [3], [1, -2, 3]))
    graph.initializer.append(helper.make_tensor("texts", onnx.TensorProto.STRING, [1], [b"a"]))
    graph.initializer.append(numpy_helper.from_array(np.zeros((0, 4), np.float32), "empty"))
    for parent in (model, graph):  # else a field that a later ONNX adds would go unseen
        missing = {f.name for f in parent.DESCRIPTOR.fields} - {f.name for f, _ in parent.ListFields()}
        assert missing <= {"domain"}
    assert same(model)


@pytest.mark.parametrize("length", [0, 127, 128, 300, 20000])
def test_lengths_of_one_byte_and_more(length, monkeypatch):
    pieces(monkeypatch)
    model = chain(1)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(length, np.uint8), "w"))
    assert same(model)


@pytest.mark.parametrize("place", ["model", "graph"])
def test_fields_that_this_version_does_not_know_stay(place, monkeypatch):
    at_any_size(monkeypatch)
    model = chain(1)
    field = bytes([0xFA, 0x3F, 2, 8, 1])  # number 1023
    if place == "model":
        model = onnx.ModelProto.FromString(model.SerializeToString() + field)
    else:
        model.graph.CopyFrom(onnx.GraphProto.FromString(model.graph.SerializeToString() + field))
    assert len(UnknownFieldSet(getattr(model, place, model)))
    assert field in files.serialized(model)
    assert same(model)


@pytest.mark.parametrize("pieces", [True, False])
def test_a_message_of_more_bytes_than_protobuf_allows_is_refused(pieces, monkeypatch, tmp_path):
    model = optimize(chain(2)).model
    size = model.ByteSize()
    if pieces:
        at_any_size(monkeypatch)
    monkeypatch.setattr(message, "LARGEST_MESSAGE", size)
    assert same(model)
    monkeypatch.setattr(message, "LARGEST_MESSAGE", size - 1)
    with pytest.raises(files.MessageTooLarge):
        files.serialized(model)
    with pytest.raises(CannotRun, match="larger than 2 GiB"):
        _ = Side(model, None, None).message
    with pytest.raises(OutputError, match="--external-data keeps its weights apart"):
        optimize(chain(2), tmp_path / "out.onnx", Options(verify=False))


@pytest.mark.parametrize("field", ["producer_name", "doc_string", "graph.name", "graph.doc_string", "node.doc_string"])
def test_texts_that_are_no_utf8_stay(field, monkeypatch, tmp_path):
    pieces(monkeypatch)
    model = chain(1)
    holder = {"graph": model.graph, "node": model.graph.node[0]}.get(field.split(".")[0], model)
    setattr(holder, field.split(".")[-1], "text-of-mine")
    odd = onnx.ModelProto.FromString(model.SerializeToString().replace(b"text-of-mine", b"text-\xff\xfe-mine"))
    assert same(odd)
    monkeypatch.undo()
    at_any_size(monkeypatch)
    result = optimize(odd.SerializeToString(), tmp_path / "out.onnx")
    assert result.status == "folded"
    kept = b"text-\\xff\\xfe-mine" if field.startswith("node") else b"text-\xff\xfe-mine"  # a new node has no bytes
    assert kept in (tmp_path / "out.onnx").read_bytes()


def test_a_model_without_a_graph(monkeypatch):
    at_any_size(monkeypatch)
    assert same(onnx.ModelProto(ir_version=10))


def test_a_part_that_is_too_large_alone_is_refused(monkeypatch):
    at_any_size(monkeypatch)

    def failing(model):
        raise EncodeError("Failed to serialize proto")

    monkeypatch.setattr(message, "_written", failing)
    with pytest.raises(files.MessageTooLarge):
        files.serialized(chain(1))


def test_many_small_parts_are_written_as_one(monkeypatch):
    """One by one they would take longer."""
    monkeypatch.setattr(message, "_SMALL", 0)
    monkeypatch.setattr(message, "_written", lambda model: pytest.fail("written one by one"))
    assert same(chain(1))


def test_weights_are_not_written_into_a_buffer_that_grows(monkeypatch):
    """Of a model of several MiB, nothing but single tensors goes through the library."""
    pieces(monkeypatch)
    n = Net(0)
    x = n.input((1, 512, 4, 4))
    assert same(n.model(n.conv(n.conv(x, 512, 1), 512, 1)))
