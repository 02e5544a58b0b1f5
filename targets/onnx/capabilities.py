"""What onnxruntime's CPU provider runs as integer kernels, from its own kernel tables."""

from __future__ import annotations

from pipeline.target import Capabilities, Capability

KERNELS = "https://github.com/microsoft/onnxruntime/blob/main/docs/OperatorKernels.md#cpuexecutionprovider"
SELECTORS = (
    "https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/core/optimizer/qdq_transformer/"
    "selectors_actions/qdq_selector_action_transformer.cc"
)

_FUSED = {
    "Conv": "per-channel",
    "Gemm": "per-channel",
    "MatMul": "per-channel",
    "Add": "per-tensor",
    "Mul": "per-tensor",
    "AveragePool": "per-tensor",
    "GlobalAveragePool": "per-tensor",
    "Concat": "per-tensor",
    "LeakyRelu": "per-tensor",
    "Sigmoid": "per-tensor",
    "Softmax": "per-tensor",
    "Where": "per-tensor",
}
_ON_INTEGERS = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Gather", "Split", "Resize")

CAPABILITIES = Capabilities(
    activation_dtypes=("uint8", "int8"),
    weight_dtypes=("int8", "uint8"),
    dynamic_batch=True,
    operators=(
        *(Capability(op=op, dtypes=("uint8", "int8"), granularity=g, source=SELECTORS) for op, g in _FUSED.items()),
        *(Capability(op=op, dtypes=("uint8", "int8"), source=KERNELS) for op in _ON_INTEGERS),
    ),
)
