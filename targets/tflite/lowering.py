"""From a program to a ``.tflite`` file: integers only where the program is quantized, FP32 otherwise."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from pipeline.core import Model, TargetError
from pipeline.models.capture import capture, example_inputs
from pipeline.recipe import TfliteConfig
from pipeline.target import Lowered, Variant
from targets.tflite import comparison, flatbuffer, forms, gpu, interface, layout, padding, placement, rounding
from targets.tflite.corrections import correct
from targets.tflite.sdk import in_words, litert_torch, quiet
from targets.tflite.session import interpreter

logger = logging.getLogger(__name__)

BATCH_SIZE = 1
SAME_SCALE = "violate the same scale constraint"  # the converter merged two sets of parameters that are meant to differ


def lower(model: Model, config: TfliteConfig, out_dir: Path, *, name: str, variant: Variant | None = None) -> Lowered:
    """Write ``out_dir/name.tflite`` for batch 1, its signature named as the model's inputs and outputs.

    Where operators got a CPU's forms and the recipe names an NPU as well, that gets a file of its own (see `for_npu`).

    Raises:
        TargetError: The converter has no TFLite form for the program, or LiteRT does not load what it wrote: a custom
            operator, a rank that no kernel takes. The message holds the tool's own reason.
    """
    path = out_dir / f"{name}.tflite"
    content, changed, notes = translate(model, config.optimize_for)
    if variant is not None:
        content = comparison.encode(content, variant)
    made: Variant = variant or ("int8" if model.quantized else "fp32")
    flatbuffer.write_model(finish(content, model, config, made), path, verify=_verify)
    _beside(path).unlink(missing_ok=True)
    if model.quantized and config.compare_forms and (changed.everywhere or changed.for_cpus):
        notes += _without_forms(model, config, path)
    if model.quantized and changed.for_cpus and (config.npu or config.aot):
        notes += _write_for_npu(model, config, path)
    if model.quantized and config.reference_kernels is not False:
        notes += rounding.note(for_npu(path))
    if config.gpu:
        notes += gpu.compatibility(path)
    return Lowered(
        path=path,
        variant=made,
        inputs=model.inputs,
        outputs=model.outputs,
        batch_size=BATCH_SIZE,
        notes=notes,
    )


def for_npu(path: Path) -> Path:
    """The file that an NPU gets: the model with an NPU's forms, which `lower` writes beside the one with a CPU's."""
    return _beside(path) if _beside(path).exists() else path


def _beside(path: Path) -> Path:
    return path.with_stem(f"{path.stem}_npu")


def _write_for_npu(model: Model, config: TfliteConfig, path: Path) -> tuple[str, ...]:
    """Write the file beside ``path``; say so where it cannot be made."""
    try:
        content, _, _ = translate(model, "npu")
        flatbuffer.write_model(finish(content, model, config, "int8"), _beside(path), verify=_verify)
    except TargetError as error:
        logger.debug("no file of its own for the NPU: %s", error.problem)
        return (f"the NPU gets the CPU's file: {error.problem}",)
    return ()


def _verify(path: Path) -> None:
    """Refuse a file that LiteRT does not load."""
    try:
        interpreter(path)
    except (ValueError, RuntimeError) as error:
        raise TargetError(f"LiteRT cannot run the converted model: {_reason(error, '')}") from error


def _without_forms(model: Model, config: TfliteConfig, path: Path) -> tuple[str, ...]:
    """Record where the operators would run without our forms; say so if that model cannot be made."""
    try:
        content, _, _ = translate(model, None)
    except TargetError as error:
        logger.debug("no placement without our forms: %s", error.problem)
        return (f"no placement without edgewright's forms: {error.problem}",)
    placement.record_before(finish(content, model, config, "int8"), path, config.npu)
    return ()


def translate(model: Model, goal: forms.Goal | None) -> tuple[bytes, forms.Changed, tuple[str, ...]]:
    """A program as TFLite bytes, the operators that changed, and what a reader of the report should know of them.

    Args:
        goal: None leaves the operators as the converter takes them.
    """
    program = capture(model.module, model.inputs, examples=model.examples, batch_size=BATCH_SIZE).module()
    _refuse_complex_numbers(program)
    inputs = example_inputs(model.examples or model.inputs, BATCH_SIZE)
    correct(program, inputs)
    changed = forms.rewrite(program, goal) if goal is not None else forms.Changed(Counter(), Counter())
    counts = sorted((changed.everywhere + changed.for_cpus).items())
    done = {op: "kept in float between integers" if op in forms.KEPT_IN_FLOAT else "rewritten" for op, _ in counts}
    notes = [f"{count} x {op} {done[op]} for the {goal}" for op, count in counts]
    try:
        return convert(program, inputs, quantized=model.quantized), changed, tuple(notes)
    except TargetError as error:
        if SAME_SCALE not in error.problem:
            raise
        logger.debug("the converter merges changes of parameters: again, with these apart")
        apart = forms.keep_requantizations_apart(program)
        notes.append(f"{apart} changes of quantization parameters pass through float")
        return convert(program, inputs, quantized=model.quantized), changed, tuple(notes)


def finish(content: bytes, model: Model, config: TfliteConfig, variant: Variant) -> bytes:
    """Give a converted model its names, layout and number types, and let it say what it is."""
    tflite_model = flatbuffer.read_model(content)
    interface.name_signature(tflite_model, [spec.name for spec in model.inputs], model.outputs)
    layout.pad_in_place(tflite_model)
    padding.merge_pads(tflite_model)
    if config.input_layout == "nhwc":
        layout.take_channels_last(tflite_model)
    flatbuffer.drop_unused_tensors(tflite_model)
    interface.exchange(tflite_model, config.io)
    interface.describe(tflite_model, model, variant=variant, layout=config.input_layout)
    return flatbuffer.serialize(tflite_model)


def convert(module: nn.Module, inputs: tuple[Tensor, ...], *, quantized: bool) -> bytes:
    """A module as TFLite bytes through litert-torch (https://github.com/google-ai-edge/litert-torch).

    Args:
        quantized: Whether the module is a Q/DQ graph, whose quantizers become the integer types of TFLite.

    Raises:
        TargetError: The converter refused it.
    """
    converter = litert_torch()
    module.training = False  # a captured program has no train mode, but is born with the flag set
    try:
        with quiet() as log:
            edge_model = converter.convert(module, inputs, quant_config=_static_quantization() if quantized else None)
            return bytes(edge_model.model_content())
    except Exception as error:  # the converter raises a different class for every step that can fail
        raise TargetError(
            f"litert-torch cannot lower this model: {_reason(error, log.text)}",
            fix="leave the layer in float with quantize: {skip: [...]}, or rewrite it with other operators",
        ) from error


def _static_quantization() -> Any:
    """Tells the converter to read Q/DQ pairs as static quantization. The quantizer it names annotates nothing here."""
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    return QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(get_symmetric_quantization_config()))


def _reason(error: Exception, native_log: str) -> str:
    """One line that says what is wrong: MLIR's own error where there is one, else the exception's."""
    said_by_mlir = (line.partition("error:")[2].strip() for line in native_log.splitlines() if "error:" in line)
    said_by_python = (line.rpartition("error:")[2].strip() for line in str(error).splitlines() if line.strip())
    return in_words(next(said_by_mlir, "") or next(said_by_python, "") or type(error).__name__)


def _refuse_complex_numbers(program: GraphModule) -> None:
    """Name the operator that makes complex numbers, which the converter only says it does not know."""
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.is_complex():
            raise TargetError(
                f"{node.target} gives complex numbers, and TFLite has none",
                fix="compute it before the model, or as two convolutions: the real and the imaginary part",
            )
