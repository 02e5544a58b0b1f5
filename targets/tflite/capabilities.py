"""What TFLite can compute as 8-bit integers, as data, each line with the page that says so."""

from __future__ import annotations

from pipeline.target import Capabilities, Capability

SPECIFICATION = "https://ai.google.dev/edge/litert/models/quantization_spec"

PER_CHANNEL = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED")
PER_TENSOR = (
    *(
        "ADD",
        "AVERAGE_POOL_2D",
        "BATCH_MATMUL",
        "CONCATENATION",
        "GELU",
        "HARD_SWISH",
        "L2_NORMALIZATION",
        "LEAKY_RELU",
    ),
    *("LOGISTIC", "LOG_SOFTMAX", "MAX_POOL_2D", "MAXIMUM", "MEAN", "MINIMUM", "MUL", "PAD", "RESHAPE"),
    *("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SLICE", "SOFTMAX", "SPLIT", "SQUARED_DIFFERENCE"),
    *("STRIDED_SLICE", "SUB", "SUM", "TANH", "TRANSPOSE"),
)

CAPABILITIES = Capabilities(
    activation_dtypes=("int8",),
    weight_dtypes=("int8",),
    dynamic_batch=False,
    operators=tuple(
        Capability(op=op, dtypes=("int8",), granularity=granularity, source=SPECIFICATION)
        for granularity, names in (("per-channel", PER_CHANNEL), ("per-tensor", PER_TENSOR))
        for op in names
    ),
)
