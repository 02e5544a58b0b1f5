"""From a program to the ONNX file that onnxruntime runs: export, rewrite, check, write."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch.export import ExportedProgram

from pipeline.core import ModelArtifact, TargetError
from pipeline.program import capture, fixed_batch_size
from pipeline.recipe import OnnxConfig
from pipeline.target import Lowered
from targets.onnx.cpu import Cpu, deployment_cpu
from targets.onnx.passes.clamp_integers import ClampIntegers
from targets.onnx.passes.fold_parameters import FoldParameters
from targets.onnx.passes.fold_weights import FoldWeights
from targets.onnx.passes.keep_softmax_in_float import KeepSoftmaxInFloat
from targets.onnx.passes.pack_stem import PackStem
from targets.onnx.passes.pad_depthwise import PadDepthwise
from targets.onnx.passes.quantize_biases import QuantizeBiases
from targets.onnx.passes.quantize_scalars import QuantizeScalars
from targets.onnx.passes.reencode_activations import ReencodeActivations
from targets.onnx.passes.reencode_weights import ReencodeWeights
from targets.onnx.passes.remove_requantization import RemoveRequantization
from targets.onnx.passes.use_gemm import UseGemm
from targets.onnx.passes.use_global_pooling import UseGlobalPooling

OPSET = 21  # the first with per-channel and int8 DequantizeLinear in all its present forms; onnxruntime >= 1.20
PRODUCER = "edgewright"
LARGEST_FILE = 2**31 - 2**20  # protobuf ends at 2 GiB; the rest is for the graph


def lower(artifact: ModelArtifact, config: OnnxConfig, out_dir: Path, *, name: str) -> Lowered:
    """Write ``out_dir/name.onnx``. See `pipeline.target.Target.lower`."""
    cpu = deployment_cpu(config)
    program = capture(artifact.module, artifact.inputs)
    model = to_onnx(program, artifact)
    notes: list[str] = []
    if artifact.quantized:
        fuse(model, cpu)
        notes.append(cpu.encoding)
    path = out_dir / f"{name}.onnx"
    write(model, path)
    return Lowered(
        path=path,
        variant="int8" if artifact.quantized else "fp32",
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        batch_size=fixed_batch_size(program),
        notes=tuple(notes),
    )


def to_onnx(program: ExportedProgram, artifact: ModelArtifact) -> ir.Model:
    """The program in ONNX operators, under the artifact's input and output names.

    Raises:
        TargetError: An operator has no ONNX form.
    """
    inputs = [spec.name for spec in artifact.inputs]
    try:
        with quiet():
            exported = torch.onnx.export(
                program,
                (),
                dynamo=True,
                input_names=inputs,
                output_names=list(artifact.outputs),
                opset_version=OPSET,
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # torch.onnx wraps every cause in classes of its own
        raise TargetError(
            f"cannot be written as ONNX: {_root_cause(error)}",
            where=type(artifact.module).__name__,
            fix="replace the operator, or leave onnx out of targets",
        ) from error
    assert exported is not None  # a program in memory was asked for, not a file
    model: ir.Model = exported.model
    name_batch(model)
    model.producer_name = PRODUCER
    model.graph.name = "model"
    model.metadata_props.clear()
    if artifact.classes:
        model.metadata_props["classes"] = ",".join(artifact.classes)
    common.ClearMetadataAndDocStringPass()(model)
    return model


def fuse(model: ir.Model, cpu: Cpu) -> None:
    """Bring a quantized program into the form that onnxruntime fuses into integer kernels."""
    x86 = cpu.family == "x86"
    ir.passes.Sequential(
        UseGlobalPooling(),
        FoldWeights(),
        FoldParameters(),
        *([ReencodeActivations()] if x86 else []),
        RemoveRequantization(),
        ClampIntegers(),
        KeepSoftmaxInFloat(),
        QuantizeScalars(),
        UseGemm(),
        QuantizeBiases(),
        *([PackStem(), PadDepthwise()] if x86 else []),
        *([ReencodeWeights()] if cpu.saturates else []),
        common.RemoveUnusedNodesPass(),
        common.DeduplicateInitializersPass(),
    )(model)


def name_batch(model: ir.Model) -> None:
    """Call the dynamic first dimension of the inputs ``batch``, in every shape of the graph where it occurs."""
    first = model.graph.inputs[0].shape[0] if model.graph.inputs and model.graph.inputs[0].shape else None
    if not isinstance(first, ir.SymbolicDim):
        return
    values = {*model.graph.inputs, *(output for node in model.graph.all_nodes() for output in node.outputs)}
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([ir.SymbolicDim("batch") if dim == first else dim for dim in value.shape])


def write(model: ir.Model, path: Path) -> None:
    """Check a model and put it under its name in one step: another process sees the whole file or none.

    Raises:
        TargetError: The folder cannot be written to, the disk is full, or the model does not fit in one file.
    """
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if size > LARGEST_FILE:
        raise TargetError(
            f"its weights take {size / 2**30:.1f} GiB, and one ONNX file holds at most 2",
            where=str(path),
            fix="prune it, or quantize it, before exporting",
        )
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
    except OSError as error:
        raise TargetError(f"cannot be written: {error.strerror}", where=str(path)) from None
    try:
        ir.save(model, temporary, format="protobuf")
        onnx.checker.check_model(temporary, full_check=True)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        raise TargetError(f"cannot be written: {error.strerror}", where=str(path)) from None
    finally:
        Path(temporary).unlink(missing_ok=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back what torch's exporter says about packages that are not installed. Errors are raised, not logged."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _root_cause(error: BaseException) -> str:
    """The first line of the innermost cause: "No decompositions registered for …"."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
