"""From a program to the ONNX file that onnxruntime runs: export, rewrite, write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxscript.optimizer import optimize_ir
from torch.export import ExportedProgram

from pipeline.core import Model, TargetError
from pipeline.core.logs import silenced
from pipeline.models.capture import capture, fixed_batch_size
from pipeline.recipe import OnnxConfig
from pipeline.target import Lowered, Variant
from targets.onnx.cpu import Cpu, deployment_cpu
from targets.onnx.files import write
from targets.onnx.interface import name_interface
from targets.onnx.metadata import describe
from targets.onnx.passes.bound_windows import BoundWindows
from targets.onnx.passes.clamp_integers import ClampIntegers
from targets.onnx.passes.fold_parameters import FoldParameters
from targets.onnx.passes.fold_weights import FoldWeights
from targets.onnx.passes.keep_pads import KeepPads
from targets.onnx.passes.keep_softmax_in_float import KeepSoftmaxInFloat
from targets.onnx.passes.merge_pads import MergePads
from targets.onnx.passes.multiply_hardswish import MultiplyHardswish
from targets.onnx.passes.pack_stem import PackStem
from targets.onnx.passes.pad_depthwise import PadDepthwise
from targets.onnx.passes.pad_integers import PadIntegers
from targets.onnx.passes.quantize_biases import QuantizeBiases
from targets.onnx.passes.quantize_scalars import QuantizeScalars
from targets.onnx.passes.reencode_activations import ReencodeActivations
from targets.onnx.passes.reencode_weights import ReencodeWeights
from targets.onnx.passes.remove_requantization import RemoveRequantization
from targets.onnx.passes.repeat_gates import RepeatGates
from targets.onnx.passes.use_gemm import UseGemm
from targets.onnx.passes.use_global_pooling import UseGlobalPooling
from targets.onnx.pixels import take_pixels

OPSET = 21  # the first with per-channel and int8 DequantizeLinear in all its present forms; onnxruntime >= 1.20
PRODUCER = "edgewright"


def lower(model: Model, config: OnnxConfig, out_dir: Path, *, name: str, variant: Variant | None = None) -> Lowered:
    """Write ``out_dir/name.onnx``. See `pipeline.target.Target.lower`."""
    assert variant in (None, "fp16")
    cpu = deployment_cpu(config)
    dynamic = {**model.dynamic, **config.dynamic}
    program = capture(model.module, model.inputs, examples=model.examples, dynamic=dynamic)
    onnx_model = to_onnx(program, model)
    fixed = name_dimensions(onnx_model, dynamic, names_of(model), required=config.dynamic)
    notes = [f"ONNX opset {OPSET}", *fixed]
    pixels: tuple[str, ...] = ()
    if model.quantized:
        fuse(onnx_model, cpu)
        notes.append(cpu.encoding)
    if config.image_input:
        pixels = take_pixels(onnx_model, model)
        notes.append("image inputs take uint8 pixels: scale, mean and std are in the file, not resize and crop")
    if variant == "fp16":
        onnx_model = in_fp16(onnx_model)
    return Lowered(
        path=(path := out_dir / f"{name}.onnx"),
        variant=variant or ("int8" if model.quantized else "fp32"),
        inputs=model.inputs,
        outputs=model.outputs,
        batch_size=fixed_batch_size(program),
        pixels=pixels,
        notes=(*notes, *write(onnx_model, path, ort=config.ort and variant is None)),
    )


def to_onnx(program: ExportedProgram, model: Model) -> ir.Model:
    """The program in ONNX operators, under the model's input and output names.

    Raises:
        TargetError: An operator has no ONNX form, or the names of inputs and outputs are not unique.
    """
    try:
        with quiet():
            exported = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=OPSET,
                optimize=False,
                verbose=False,
            )
    except Exception as error:  # torch.onnx wraps every cause in classes of its own
        raise TargetError(
            f"cannot be written as ONNX: {_root_cause(error)}",
            where=type(model.module).__name__,
            fix="replace the operator, or leave onnx out of targets",
        ) from error
    assert exported is not None  # a program in memory was asked for, not a file
    onnx_model: ir.Model = exported.model
    optimize_ir(onnx_model, num_iterations=1)  # the exporter would do it twice, to no further effect on these graphs
    onnx_model.producer_name = PRODUCER
    onnx_model.graph.name = "model"
    KeepPads()(onnx_model)
    name_interface(onnx_model, [spec.name for spec in model.inputs], model.outputs)
    describe(onnx_model, model)
    common.ClearMetadataAndDocStringPass()(onnx_model)
    return onnx_model


def fuse(model: ir.Model, cpu: Cpu) -> None:
    """Bring a quantized program into the form that onnxruntime fuses into integer kernels."""
    x86 = cpu.family == "x86"
    ir.passes.Sequential(
        UseGlobalPooling(),
        FoldWeights(),
        FoldParameters(),
        BoundWindows(),
        MergePads(),
        common.RemoveUnusedNodesPass(),
        *([ReencodeActivations()] if x86 else []),
        PadIntegers(),
        RemoveRequantization(),
        ClampIntegers(),
        MultiplyHardswish(),
        KeepSoftmaxInFloat(),
        QuantizeScalars(),
        UseGemm(),
        QuantizeBiases(),
        *([PackStem(), PadDepthwise(), RepeatGates()] if x86 else []),
        *([ReencodeWeights()] if cpu.saturates else []),
        common.RemoveUnusedNodesPass(),
        common.DeduplicateInitializersPass(),
    )(model)


def in_fp16(model: ir.Model) -> ir.Model:
    """The same float model with weights and arithmetic in 16 bits; inputs and outputs stay as they are."""
    half: ir.Model = ir.from_proto(convert_float_to_float16(ir.to_proto(model), keep_io_types=True))
    common.TopologicalSortPass()(half)  # the conversions at inputs and outputs are behind all other nodes
    return half


def names_of(model: Model) -> dict[tuple[str, int], str]:
    """What the recipe calls the open axes of inputs; axis 0 is the batch."""
    return {(spec.name, each.axis + 1): each.name for spec in model.inputs for each in spec.open_sizes}


def name_dimensions(
    model: ir.Model,
    dynamic: Mapping[str, Sequence[int]],
    called: Mapping[tuple[str, int], str],
    *,
    required: Mapping[str, Sequence[int]],
) -> list[str]:
    """Call the dynamic first dimension ``batch`` and the others as the recipe does, or after their input: ``image_2``.

    Args:
        required: Axes that must be dynamic; where another is not, a note says so.

    Raises:
        TargetError: A size that is to vary is fixed by the model's own code.
    """
    notes = []
    values = {*model.graph.inputs, *(output for node in model.graph.all_nodes() for output in node.outputs)}
    _change_sizes(values, _number)
    names: dict[ir.SymbolicDim, str] = {}
    for value in model.graph.inputs:
        shape = [] if value.shape is None else list(value.shape)
        if shape and isinstance(shape[0], ir.SymbolicDim):
            names[shape[0]] = "batch"
        for axis in dynamic.get(value.name or "", ()):
            size = shape[axis] if axis < len(shape) else 0
            if not isinstance(size, ir.SymbolicDim) and axis not in required.get(value.name or "", ()):
                notes.append(f"axis {axis} of {value.name!r} is fixed at {size}, by the model's own code")
                continue
            if not isinstance(size, ir.SymbolicDim):
                raise TargetError(
                    f"the model's own code fixes axis {axis} of {value.name!r} at {size}",
                    where=f"targets: onnx.dynamic.{value.name}",
                    fix="leave the axis out, or write the layer without that size",
                )
            names.setdefault(size, called.get((value.name or "", axis), f"{value.name}_{axis}"))
    _change_sizes(values, lambda size: ir.SymbolicDim(names.get(size, size.value)))
    return notes


def _change_sizes(values: Iterable[ir.Value], change: Callable[[ir.SymbolicDim], int | ir.SymbolicDim]) -> None:
    for value in values:
        if value.shape is not None:
            sizes = [change(size) if isinstance(size, ir.SymbolicDim) else size for size in value.shape]
            value.shape = ir.Shape(sizes)


def _number(size: ir.SymbolicDim) -> int | ir.SymbolicDim:
    """A size that torch's exporter calls by a number is that number."""
    return int(size.value) if size.value is not None and size.value.isdecimal() else size


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch's exporter says about packages that are not installed. Errors are raised, not logged."""
    with silenced("torch.onnx"):
        yield


def _root_cause(error: BaseException) -> str:
    """The first line of the innermost cause: "No decompositions registered for …"."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
