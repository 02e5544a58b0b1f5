"""Running an artifact in onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import onnxruntime

from pipeline.core import DType, TargetError, TensorSpec
from pipeline.machine.processor import cpu_name
from pipeline.target import Lowered, Variant
from targets.onnx.errors import as_target_error
from targets.onnx.metadata import Metadata, read
from targets.onnx.providers import CPU

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

    def __init__(self, lowered: Lowered, threads: int, providers: Sequence[str] = (CPU,)) -> None:
        self._session = open_session(lowered.path, session_options(threads), providers)
        taken = self._session.get_providers()
        self.runtime = f"onnxruntime {onnxruntime.__version__}" + (f" {taken[0]}" if taken[0] != CPU else "")
        self.device = cpu_name() if taken[0] == CPU else taken[0].removesuffix("ExecutionProvider")
        self.batch_size = lowered.batch_size
        self._where = str(lowered.path)
        self._inputs = lowered.inputs
        self._outputs = list(lowered.outputs)
        self._metadata = read(self._session.get_modelmeta().custom_metadata_map)

    def run(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        given = zip(self._inputs, inputs, strict=True)
        feeds = {spec.name: self._as_taken(spec, array) for spec, array in given}
        with as_target_error("onnxruntime cannot run it", self._where):
            return tuple(self._session.run(self._outputs, feeds))

    def _as_taken(self, spec: TensorSpec, values: Array) -> Array:
        if not self._metadata.pixel_inputs:
            return values
        from targets.onnx.pixels import as_taken  # imports torch, without which a file starts ten times as fast

        return as_taken(spec, values, self._metadata)


def open_session(
    path: Path, options: onnxruntime.SessionOptions, providers: Sequence[str] = (CPU,)
) -> onnxruntime.InferenceSession:
    """Load a file in onnxruntime.

    Raises:
        TargetError: onnxruntime has no kernel for an operator, or the file is not one of its own.
    """
    with as_target_error("onnxruntime cannot load it", str(path)):
        return onnxruntime.InferenceSession(path, options, providers=providers)


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
    session = open_session(path, session_options(1))
    metadata = read(session.get_modelmeta().custom_metadata_map)
    shapes = {port.name: port.shape for port in session.get_inputs()}
    batch_sizes = {shape[0] for shape in shapes.values() if shape and isinstance(shape[0], int)}
    unknown = next((port for port in session.get_inputs() if port.type not in ELEMENT_TYPES), None)
    if unknown is not None:
        raise TargetError(
            f"input {unknown.name!r} is a {unknown.type}",
            where=str(path),
            fix=f"convert it to one of {', '.join(sorted(ELEMENT_TYPES.values()))}",
        )
    return Lowered(
        path=path,
        variant=_variant(path),
        inputs=tuple(
            TensorSpec(name=port.name, shape=_static(port, metadata, path), dtype=ELEMENT_TYPES[port.type])
            for port in session.get_inputs()
        ),
        outputs=tuple(port.name for port in session.get_outputs()),
        batch_size=max(batch_sizes, default=None),
    )


def _static(port: onnxruntime.NodeArg, metadata: Metadata, path: Path) -> tuple[int, ...]:
    """An input's shape without the batch; where it is dynamic, the one that the model was made with."""
    if all(isinstance(size, int) for size in port.shape[1:]):
        return tuple(port.shape[1:])
    if port.name not in metadata.shapes:
        raise TargetError(f"input {port.name!r} has a dynamic shape {port.shape}", where=str(path))
    made = metadata.shapes[port.name]
    stored_last = port.name in metadata.pixel_inputs and metadata.preprocessing.layout == "nhwc"
    return (*made[1:], made[0]) if stored_last else made


def _variant(path: Path) -> Variant:
    """What a file computes in, by the kind of its operators and weights; in an ``.ort`` file, their names."""
    if path.suffix == ".ort":
        return "int8" if b"QLinear" in path.read_bytes() else "fp32"
    import onnx_ir as ir  # it takes longer than running a small file

    graph = ir.load(path).graph
    if any(node.op_type == "DequantizeLinear" for node in graph):
        return "int8"
    return "fp16" if any(value.dtype == ir.DataType.FLOAT16 for value in graph.initializers.values()) else "fp32"
