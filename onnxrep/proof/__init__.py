"""Proof that two models are the same function: float64 twin, ONNX Runtime sessions, inputs, judgement."""
