"""Running an artefact in onnxruntime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import onnxruntime

from targets.onnx.cpu import cpu_name

if TYPE_CHECKING:
    from pipeline.target import Array, Lowered

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
