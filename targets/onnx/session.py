"""Running an artefact in onnxruntime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import onnx_ir as ir
import onnxruntime

from pipeline.core import DType, TargetError, TensorSpec
from pipeline.machine import cpu_name
from pipeline.target import Lowered

if TYPE_CHECKING:
    from pipeline.target import Array

ELEMENT_TYPES: dict[str, DType] = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
ERROR = 3  # onnxruntime's severity levels: 2 is warning, 3 is error


class OnnxSession:
    """See `pipeline.target.Session`."""

    metrics_source: Literal["measured", "reference"] = "measured"

    def __init__(self, lowered: Lowered, threads: int) -> None:
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        self.device = cpu_name()
        self._inputs = tuple(spec.name for spec in lowered.inputs)
        self._outputs = list(lowered.outputs)
        self._session = onnxruntime.InferenceSession(
            lowered.path, session_options(threads), providers=["CPUExecutionProvider"]
        )

    def run(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(self._session.run(self._outputs, dict(zip(self._inputs, inputs, strict=True))))


def session_options(threads: int, *, optimized: Path | None = None) -> onnxruntime.SessionOptions:
    """Options for ``threads`` computing threads; ``optimized`` is where to save the graph that will really run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = ERROR
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return options


def read_interface(path: Path) -> Lowered:
    """What a saved model takes and gives. See `pipeline.target.Target.open`."""
    if not path.is_file():
        raise TargetError("no such file", where=str(path))
    try:
        session = onnxruntime.InferenceSession(path, session_options(1), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for every status code
        raise TargetError(f"onnxruntime cannot load it: {str(error).splitlines()[0]}", where=str(path)) from None
    shapes = {port.name: port.shape for port in session.get_inputs()}
    if unknown := [name for name, shape in shapes.items() if not all(isinstance(size, int) for size in shape[1:])]:
        raise TargetError(f"input {unknown[0]!r} has a dynamic shape {shapes[unknown[0]]}", where=str(path))
    batch_sizes = {shape[0] for shape in shapes.values() if isinstance(shape[0], int)}
    integers = any(node.op_type == "DequantizeLinear" for node in ir.load(path).graph)
    return Lowered(
        path=path,
        variant="int8" if integers else "fp32",
        inputs=tuple(
            TensorSpec(name=port.name, shape=tuple(port.shape[1:]), dtype=ELEMENT_TYPES[port.type])
            for port in session.get_inputs()
        ),
        outputs=tuple(port.name for port in session.get_outputs()),
        batch_size=max(batch_sizes, default=None),
    )
