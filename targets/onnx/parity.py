"""Where the file departs from the quantized program: both run on the same samples, compared tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from pipeline.core import Model
from pipeline.models.capture import capture
from pipeline.tasks.comparison import sqnr_db
from targets.onnx.qdq import constant, encoding
from targets.onnx.session import session_options

if TYPE_CHECKING:
    from pipeline.target import Array, Lowered


@dataclass(frozen=True, slots=True)
class TensorParity:
    """One quantized tensor of the program and of the file.

    Attributes:
        name: The tensor's name in both graphs.
        sqnr_db: Of the file's real numbers against the program's; infinite where they are equal.
        most_steps: The largest difference, in steps of the quantization.
        differing_ratio: Share of the elements whose integers differ.
    """

    name: str
    sqnr_db: float
    most_steps: int
    differing_ratio: float


def parity(model: Model, lowered: Lowered, inputs: tuple[Tensor, ...]) -> tuple[TensorParity, ...]:
    """Compare every quantized tensor that both graphs have, in the order the file computes them.

    Args:
        model: The quantized program that was lowered.
        inputs: One batch of samples ``(N, …)``, N > 1 or the file's batch size.
    """
    expected = _program_integers(model, inputs)
    onnx_model = ir.load(lowered.path)
    quantized = {
        node.outputs[0].name: node
        for node in onnx_model.graph
        if node.op_type == "QuantizeLinear" and node.outputs[0].name in expected and constant(node.inputs[0]) is None
    }
    for node in quantized.values():
        onnx_model.graph.outputs.append(node.outputs[0])
    session = onnxruntime.InferenceSession(
        ir.to_proto(onnx_model).SerializeToString(), session_options(1), providers=["CPUExecutionProvider"]
    )
    feeds = {spec.name: tensor.numpy() for spec, tensor in zip(lowered.inputs, inputs, strict=True)}
    names = list(quantized)
    found = session.run(names, feeds) if names else []
    return tuple(
        _compare(name, expected[name].numpy(), integers, quantized[name])
        for name, integers in zip(names, found, strict=True)
    )


def first_divergence(tensors: tuple[TensorParity, ...]) -> TensorParity | None:
    """The earliest tensor that is more than one step off anywhere; None where the whole file is within one."""
    return next((tensor for tensor in tensors if tensor.most_steps > 1), None)


def _program_integers(model: Model, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """What every quantize_per_tensor of the program gives, by the name it has when captured for lowering."""
    program = capture(model.module, model.inputs, examples=model.examples)
    recorder = _Recorder(program.module(check_guards=False))
    with torch.inference_mode():
        recorder.run(*inputs)
    return recorder.integers


class _Recorder(Interpreter):
    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.integers: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.target == torch.ops.quantized_decomposed.quantize_per_tensor.default:
            self.integers[n.name] = result
        return result


def _compare(name: str, expected: Array, found: Array, node: ir.Node) -> TensorParity:
    rule = encoding(node)
    assert rule is not None  # every quantizer of a program has a constant encoding
    shift = 128 if found.dtype == np.uint8 else 0
    difference = found[:, : expected.shape[1]].reshape(expected.shape).astype(np.int64) - shift - expected
    zero_point = int(rule.zero_point) - shift
    reference = torch.from_numpy(expected.astype(np.float64) - zero_point)
    return TensorParity(
        name=name,
        sqnr_db=sqnr_db(reference, reference + torch.from_numpy(difference)),
        most_steps=int(np.abs(difference).max(initial=0)),
        differing_ratio=float((difference != 0).mean()),
    )
