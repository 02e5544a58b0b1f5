"""Which operators run as integer kernels, and for how long: the graph that onnxruntime executes, and its profile."""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from pipeline.target import Fallback, Lowered, OperatorTime, Placement
from targets.onnx.metadata import read
from targets.onnx.pixels import as_taken
from targets.onnx.session import session_options

INTEGER_KERNELS = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantize")
EIGHT_BITS = ("int8", "uint8")
RUNS = 5
SLOWEST = 10

_NO_KERNEL = "the runtime has no integer kernel for it"
REASONS = {
    "QuantizeLinear": "converts around operators that run in float",
    "DequantizeLinear": "converts around operators that run in float",
    "Softmax": "the integer kernel is slower, and its rounding is not the program's",
    "HardSigmoid": _NO_KERNEL,
    "HardSwish": _NO_KERNEL,
    "Gelu": _NO_KERNEL,
    "QuickGelu": _NO_KERNEL,
    "Erf": _NO_KERNEL,
    "Tanh": _NO_KERNEL,
    "LayerNormalization": _NO_KERNEL,
    "SkipLayerNormalization": _NO_KERNEL,
    "InstanceNormalization": _NO_KERNEL,
    "ReduceMean": _NO_KERNEL,
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """One node of the executed graph.

    Attributes:
        name: The node's own name, or the one that the runtime gives it in its profile.
        data_type: The element type of its first input, such as ``uint8`` or ``float``.
        interface: Whether it converts between the model's float inputs or outputs and integers.
        time_ns: Median time of one run at batch 1.
    """

    name: str
    op: str
    data_type: str
    interface: bool
    time_ns: int

    @property
    def on_integers(self) -> bool:
        """Whether it computes on 8-bit integers, moves them, or converts at the model's own float interface."""
        if self.op.startswith(INTEGER_KERNELS):
            return True
        if self.op in ("QuantizeLinear", "DequantizeLinear"):
            return self.interface
        return self.data_type in EIGHT_BITS

    @property
    def reason(self) -> str:
        """Why it is not an integer kernel."""
        return REASONS.get(self.op, "runs in float: the program leaves it unquantized here")


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
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(1, optimized=Path(folder) / "optimized.onnx")
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(lowered.path, options, providers=["CPUExecutionProvider"])
        metadata = read(session.get_modelmeta().custom_metadata_map)
        feeds = {
            spec.name: as_taken(spec, np.zeros((lowered.batch_size or 1, *spec.shape), spec.dtype), metadata)
            for spec in lowered.inputs
        }
        for _ in range(RUNS):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        interface = {
            (node.op_type, node.name) for node in ir.load(Path(folder) / "optimized.onnx").graph if _at_interface(node)
        }
    runs: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            runs[event["args"]["op_name"], event["name"].removesuffix("_kernel_time")].append(event)
    return tuple(
        Kernel(
            name=name,
            op=op,
            data_type=_first_type(taken[0]["args"].get("input_type_shape", [])),
            interface=(op, name) in interface,
            time_ns=round(median(event["dur"] * 1000 for event in taken)),
        )
        for (op, name), taken in runs.items()
    )


def _first_type(types: list[dict[str, list[int]]]) -> str:
    """``uint8`` of ``[{"uint8": [1, 3, 8, 8]}, …]``."""
    return next(iter(types[0])) if types else ""


def _at_interface(node: ir.Node) -> bool:
    first = node.inputs[0] if node.inputs else None
    return (first is not None and first.is_graph_input()) or any(output.is_graph_output() for output in node.outputs)
