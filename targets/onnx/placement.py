"""Which operators run as integer kernels, and for how long: the graph that onnxruntime executes, and its profile."""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from pipeline.target import Fallback, Lowered, OperatorTime, Placement
from targets.onnx.metadata import Metadata, read
from targets.onnx.opened import element_type, refusals
from targets.onnx.passes.keep_softmax_in_float import is_kept_in_float
from targets.onnx.session import session_options

INTEGER_KERNELS = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantize")
"""How the names of onnxruntime's integer kernels begin."""

FUSED = frozenset(
    {
        *("Add", "AveragePool", "Concat", "Conv", "Gemm", "GlobalAveragePool", "LeakyRelu", "MatMul", "Mul", "Sigmoid"),
        *("Softmax", "Where"),
        *("ArgMax", "Expand", "Flatten", "Gather", "GatherElements", "MaxPool", "ReduceMax", "ReduceMin", "Reshape"),
        *("Resize", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    }
)
"""Operators that onnxruntime fuses with the quantization around them, or moves onto the integers.

https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/core/optimizer/qdq_transformer/selectors_actions/qdq_selector_action_transformer.cc
"""

CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
EIGHT_BITS = ("int8", "uint8")
FLOATS = ("float", "float16", "double", "bfloat16")
PROFILED_RUNS = 5
SLOWEST = 10

CONVERTS = "converts between integers and the floats of other operators"
INDICES = "works on shapes, indices or masks, not on 8-bit values"
NO_KERNEL = "computed in float: onnxruntime has no integer kernel for it"
KEPT = (
    "computed in float: edgewright keeps it there, because the integer kernel is slower and does not round as the "
    "program does"
)
NOT_QUANTIZED = "computed in float: an operand or the result is not quantized in the file"
NOT_FUSED = "computed in float: onnxruntime did not fuse it with the quantization around it"


@dataclass(frozen=True, slots=True)
class Kernel:
    """One node of the executed graph.

    Attributes:
        name: The node's own name, or the one that the runtime gives it in its profile.
        data_type: The element type of its first input, such as ``uint8`` or ``float``.
        node: The node in the optimized graph; None where the profile names one that the graph does not have.
        time_ns: Median time of one run at batch 1.
    """

    name: str
    op: str
    data_type: str
    node: ir.Node | None
    time_ns: int

    @property
    def on_integers(self) -> bool:
        """Whether it computes on 8-bit integers, moves them, or converts at the model's own float interface."""
        if self.op.startswith(INTEGER_KERNELS):
            return True
        if self.op in CONVERSIONS:
            return self.node is not None and _at_interface(self.node)
        return self.data_type in EIGHT_BITS

    @property
    def reason(self) -> str:
        """Why it is not an integer kernel."""
        if self.op in CONVERSIONS:
            return CONVERTS
        if self.data_type not in FLOATS or self.op == "Shape":
            return INDICES
        if self.node is not None and is_kept_in_float(self.node):
            return KEPT
        if self.op.removeprefix("Fused") not in FUSED:
            return NO_KERNEL
        return NOT_FUSED if self.node is not None and _between_integers(self.node) else NOT_QUANTIZED


def placement(lowered: Lowered) -> Placement:
    """Load and run a model, and count what onnxruntime really executes."""
    executed = kernels(lowered)
    in_float = [kernel for kernel in executed if not kernel.on_integers]
    reasons = Counter((kernel.op, kernel.reason) for kernel in in_float)
    total_ns = sum(kernel.time_ns for kernel in executed) or 1
    slowest = sorted(executed, key=lambda kernel: -kernel.time_ns)[:SLOWEST]
    return Placement(
        operators=len(executed),
        accelerated=len(executed) - len(in_float),
        fallback=tuple(Fallback(op=op, count=count, reason=why) for (op, why), count in reasons.most_common()),
        source=f"optimized graph and profile of onnxruntime {onnxruntime.__version__} (CPUExecutionProvider)",
        slowest=tuple(
            OperatorTime(op=item.op, name=item.name, median_ns=item.time_ns, share=item.time_ns / total_ns)
            for item in slowest
        ),
    )


def kernels(lowered: Lowered) -> tuple[Kernel, ...]:
    """The nodes that remain after onnxruntime's own rewrites for this CPU, in the order they run."""
    refused = refusals(lowered.path, "onnxruntime cannot run it")
    with tempfile.TemporaryDirectory() as folder, refused:
        options = session_options(1, optimized=Path(folder) / "optimized.onnx")
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(lowered.path, options, providers=["CPUExecutionProvider"])
        metadata = read(session.get_modelmeta().custom_metadata_map)
        feeds = {port.name: _blank(port, metadata, lowered.path) for port in session.get_inputs()}
        for _ in range(PROFILED_RUNS):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        graph = ir.load(Path(folder) / "optimized.onnx").graph
    runs: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            runs[event["args"]["op_name"], event["name"].removesuffix("_kernel_time")].append(event)
    nodes = _by_profiled_name(graph, runs)
    return tuple(
        Kernel(
            name=name,
            op=op,
            data_type=_data_type(taken[0]["args"].get("input_type_shape", [])),
            node=nodes.get((op, name)),
            time_ns=round(median(event["dur"] * 1000 for event in taken)),
        )
        for (op, name), taken in runs.items()
    )


def _blank(port: onnxruntime.NodeArg, metadata: Metadata, path: Path) -> Any:
    """Zeros, or empty texts, for an input; axes that vary have the size that the model was made with, or 1."""
    made = metadata.shapes.get(port.name, ())
    if port.name in metadata.pixel_inputs and metadata.preprocessing.layout == "nhwc":
        made = (*made[1:], *made[:1])
    defaults = (1, *made) if len(made) == len(port.shape) - 1 else (1,) * len(port.shape)
    shape = [size if isinstance(size, int) else default for size, default in zip(port.shape, defaults, strict=True)]
    dtype = element_type(port, path)
    return np.full(shape, "", object) if dtype == "str" else np.zeros(shape, dtype)


def _by_profiled_name(graph: ir.Graph, profiled: Iterable[tuple[str, str]]) -> dict[tuple[str, str], ir.Node]:
    """Nodes by operator and name in the profile, where onnxruntime numbers those that have no name.

    The graph is saved in the order in which it runs, so that nameless nodes of one operator are in the same order in
    both.
    """
    named = {(node.op_type, node.name): node for node in graph.all_nodes() if node.name}
    nameless: dict[str, list[ir.Node]] = defaultdict(list)
    for node in graph.all_nodes():
        if not node.name:
            nameless[node.op_type].append(node)
    found = {}
    for op, name in profiled:
        if (op, name) in named:
            found[op, name] = named[op, name]
        elif nameless[op]:
            found[op, name] = nameless[op].pop(0)
    return found


def _data_type(types: list[dict[str, list[int]]]) -> str:
    """``uint8`` of ``[{"uint8": [1, 3, 8, 8]}, …]``; a condition or mask that stands before the data is passed over."""
    names = [next(iter(entry)) for entry in types]
    return next((name for name in names if name != "bool"), names[0] if names else "")


def _at_interface(node: ir.Node) -> bool:
    first = node.inputs[0] if node.inputs else None
    return (first is not None and first.is_graph_input()) or any(output.is_graph_output() for output in node.outputs)


def _between_integers(node: ir.Node) -> bool:
    """Whether a node reads dequantized values only, and its results are quantized."""
    producers = [value.producer() for value in node.inputs if value is not None]
    readers = [reader for output in node.outputs for reader in output.consumers()]
    return (
        bool(producers)
        and bool(readers)
        and all(producer is not None and producer.op_type == "DequantizeLinear" for producer in producers)
        and all(reader.op_type == "QuantizeLinear" for reader in readers)
    )
