"""Writing files: complete or not at all, weights beside the graph where one file cannot hold both."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime

from pipeline.core.files import atomic_write
from targets.onnx.errors import as_target_error
from targets.onnx.session import session_options

LARGEST_FILE = 2**31 - 2**20  # protobuf ends at 2 GiB; the rest is for the graph


def write(model: ir.Model, path: Path, *, ort: bool = False) -> tuple[str, ...]:
    """Check a model and put it under its name: another process sees the whole file or none.

    Weights that do not fit go to ``<path>.data``, which is in place before the file that refers to it.

    Args:
        ort: Also write ``<path without .onnx>.ort``, the format of onnxruntime's mobile builds, with the rewrites that
            do not depend on this machine's CPU (https://onnxruntime.ai/docs/performance/model-optimizations/ort-format-models.html).

    Returns:
        What a reader of the report should know about the files.

    Raises:
        OutputError: The folder cannot be written to, or the disk is full.
        TargetError: The graph is not valid ONNX.
    """
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    data = f"{path.name}.data" if size > LARGEST_FILE else None
    notes = [f"its weights, {size / 1e9:.2f} GB, are in {data} beside it"] if data else []
    with atomic_write(path) as staged:
        with as_target_error("onnx refuses the graph", model.graph.name or str(path)):
            ir.save(model, staged, format="protobuf", external_data=data)
            onnx.checker.check_model(staged, full_check=True)
        if ort:
            notes.append(f"{_write_ort(staged).name} is the same model for onnxruntime's mobile builds")
    if data is None:
        path.with_name(f"{path.name}.data").unlink(missing_ok=True)  # of a larger model of that name
    return tuple(notes)


def _write_ort(path: Path) -> Path:
    """The model in onnxruntime's own format, beside the file."""
    result = path.with_suffix(".ort")
    options = session_options(1, optimized=result)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.save_model_format", "ORT")
    with as_target_error("cannot be written as .ort", str(path)):
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return result
