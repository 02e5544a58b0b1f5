"""What integer kernels can do, as data: which operators run in int8, and how their quantization parameters relate.

The rules hold what the int8 kernels of all targets have in common. They follow the LiteRT 8-bit quantization
specification (https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec), the strictest
of them; ONNX Runtime (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html) and Core ML
(https://apple.github.io/coremltools/docs-guides/source/opt-quantization-overview.html) accept whatever it allows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LITERT_SPEC = "https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec"
ORT_GUIDE = "https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html"

Kind = Literal["weighted", "clamp", "computes", "moves", "fixed"]
"""How an operator treats quantization parameters.

- ``weighted``: argument 0 is an activation, argument 1 a weight with one scale per output channel, argument 2 a bias.
- ``clamp``: fuses into the operator before it, so that one range, taken after the clamp, serves both.
- ``computes``: inputs and output each have their own parameters.
- ``moves``: only moves or selects values, so inputs and output share one set of parameters.
- ``fixed``: the kernel prescribes the output's parameters.
"""


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table.

    Attributes:
        operators: ATen overloads, such as ``aten.conv2d.default``.
        channel_axis: Axis of a weight's output channels.
        scale: The output scale that the kernel prescribes (kind ``fixed``).
        zero_point: The output zero point that the kernel prescribes (kind ``fixed``).
        source: Who says that integer kernels work like this.
    """

    operators: tuple[str, ...]
    kind: Kind
    channel_axis: int = 0
    scale: float = 0.0
    zero_point: int = 0
    source: str = LITERT_SPEC


RULES = (
    Rule(("aten.conv1d.default", "aten.conv2d.default", "aten.linear.default"), "weighted"),
    Rule(("aten.relu.default", "aten.relu6.default", "aten.hardtanh.default", "aten.clamp.default"), "clamp"),
    Rule(("aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor"), "computes"),
    Rule(("aten.mean.dim", "aten.adaptive_avg_pool1d.default", "aten.adaptive_avg_pool2d.default"), "computes"),
    Rule(("aten.avg_pool1d.default", "aten.avg_pool2d.default"), "moves"),
    Rule(("aten.max_pool1d.default", "aten.max_pool2d.default", "aten.adaptive_max_pool2d.default"), "moves"),
    Rule(("aten.view.default", "aten.reshape.default", "aten.flatten.using_ints", "aten.clone.default"), "moves"),
    Rule(("aten.permute.default", "aten.transpose.int", "aten.squeeze.dim", "aten.unsqueeze.default"), "moves"),
    Rule(("aten.cat.default",), "moves"),
    Rule(("aten.sigmoid.default", "aten.softmax.int"), "fixed", scale=1 / 256, zero_point=-128),
    Rule(("aten.tanh.default",), "fixed", scale=1 / 128, zero_point=0),
)

RULE_OF = {operator: rule for rule in RULES for operator in rule.operators}
"""The rule of each ATen overload; an operator without one stays in float."""
