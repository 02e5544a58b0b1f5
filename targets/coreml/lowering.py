"""From a captured program to a saved ML Program (``.mlpackage``)."""

from __future__ import annotations

import copy
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch._decomp import get_decompositions
from torch.export import ExportedProgram

from pipeline.core import Model, TargetError
from pipeline.core.files import atomic_write
from pipeline.models.capture import capture, fixed_batch_size
from pipeline.recipe import CoremlConfig
from pipeline.target import Lowered, Variant
from targets.coreml.compression import compress
from targets.coreml.interface import (
    PROBABILITIES,
    Deployed,
    Interface,
    add_classifier,
    describe,
    input_type,
    interface_of,
)
from targets.coreml.sdk import coremltools, quiet
from targets.coreml.shrink import shrink

logger = logging.getLogger(__name__)

CONVERSION_DATE = "com.github.apple.coremltools.conversion_date"
DEBUG_MAPPING = "executorch_debug_handle_mapping.json"
RESCALING = "common::distributive_quantized_binary_op_scale_normalization"
"""Divides the scales around an addition by one of them: the quotients do not exist in FP16, and parity is lost."""
FP16_SMALLEST, FP16_SMALLEST_NORMAL = 2.0**-24, 2.0**-14


def lower(model: Model, config: CoremlConfig, out_dir: Path, *, name: str, variant: Variant | None = None) -> Lowered:
    """Convert and save; see `pipeline.target.Target.lower`.

    A quantized program keeps its int8 weights as ``constexpr`` operators and its quantize/dequantize pairs, and
    computes in FP16 between them, as the Neural Engine does. The FP32 original computes in FP32, its compressed
    variants in FP16.
    """
    interface = interface_of(model, config, where=name)
    subnormal = _subnormal_scales(model.module, where=name) if model.quantized else 0
    form = variant or ("int8" if model.quantized else "fp32")
    half = config.precision == "float16" if form == "int8" else form != "fp32"
    module = fold_weights(model.module) if model.quantized else model.module
    if not interface.is_plain:
        module = Deployed(module, interface, model.preprocessing)
    notes = []
    program = _capture(module, model, config, single=not interface.is_plain)
    try:
        converted = _convert(program, model, config, interface, half=half, where=name)
    except TargetError as error:
        if fixed_batch_size(program) is not None:
            raise
        logger.debug("converted for batch 1 instead: %s", error.problem)
        notes.append(f"no dynamic batch: {error.problem}")
        program = _capture(module, model, config, single=True)
        converted = _convert(program, model, config, interface, half=half, where=name)
    finished = _finished(compress(converted, form), interface.labels)
    describe(finished, model, form, embedded=any(interface.images))
    path = out_dir / f"{name}.mlpackage"
    _save(finished, path)
    batch_size = fixed_batch_size(program)
    sizes = ", ".join(map(str, sorted(config.batch_sizes)))
    notes.append(f"batch {batch_size} only" if batch_size else f"batches of {sizes}")
    if model.quantized:
        notes.append(f"computes in {'FP16' if half else 'FP32'} between integer operators")
    if subnormal and half:
        notes.append(f"{subnormal} activation scales are subnormal in FP16 and lose precision")
    if any(interface.images):
        notes.append("takes images, and does the preprocessing itself")
    return Lowered(
        path=path,
        variant=form,
        inputs=model.inputs,
        outputs=model.outputs,
        batch_size=batch_size,
        pixels=tuple(spec.name for spec, image in zip(model.inputs, interface.images, strict=True) if image),
        notes=tuple(notes),
    )


def fold_weights(module: nn.Module) -> nn.Module:
    """A copy of a quantized program in which weights are stored as the integers they are quantized to.

    The program holds float weights followed by a quantize operator. Core ML stores a weight as int8 only where the
    operand of its dequantize is a constant.
    """
    with quiet():
        from torchao.quantization.pt2e.constant_fold import constant_fold

        folded = copy.deepcopy(module)
        constant_fold(folded)
    assert isinstance(folded, fx.GraphModule)  # a quantized program is one
    constants = [_attribute(folded, node) for node in folded.graph.find_nodes(op="get_attr")]
    logger.debug("%d weights stored as int8", sum(value.dtype == torch.int8 for value in constants))
    for node in folded.graph.find_nodes(op="call_function", target=torch.ops.aten.prelu.default):
        _give_value(folded, node.args[1])
    folded.recompile()
    return folded


def _give_value(module: fx.GraphModule, dequantized: Any) -> None:
    """Store what a dequantize of constants gives: the converter takes the slopes of a PReLU only as they are."""
    if dequantized.op != "call_function":
        return
    values = [_attribute(module, part) if isinstance(part, fx.Node) else part for part in dequantized.args]
    name = f"{dequantized.name}_value"
    module.register_buffer(name, dequantized.target(*values))
    with module.graph.inserting_before(dequantized):
        dequantized.replace_all_uses_with(module.graph.get_attr(name))
    module.graph.erase_node(dequantized)
    logger.debug("%s: stored as floats, for a PReLU", dequantized.name)


def _attribute(module: fx.GraphModule, node: fx.Node) -> Any:
    owner, _, name = str(node.target).rpartition(".")
    return getattr(module.get_submodule(owner), name)


def _subnormal_scales(module: nn.Module, *, where: str) -> int:
    """How many activation scales FP16, which the program computes in, holds with fewer bits than usual.

    Raises:
        TargetError: FP16 cannot hold a scale at all.
    """
    assert isinstance(module, fx.GraphModule)  # a quantized program is one
    quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
    scales = [float(node.args[1]) for node in module.graph.nodes if node.target is quantize]
    if scales and min(scales) < FP16_SMALLEST:
        raise TargetError(
            f"an activation scale of {min(scales):.2g} does not exist in FP16, which Core ML computes in",
            where=where,
            fix="scale the network's activations up, or leave coreml out of targets",
        )
    return sum(scale < FP16_SMALLEST_NORMAL for scale in scales)


def _capture(module: nn.Module, model: Model, config: CoremlConfig, *, single: bool) -> ExportedProgram:
    """With a dynamic batch where several sizes are asked for and the model has one input; Core ML before iOS 18 takes
    alternative shapes on one input only (https://apple.github.io/coremltools/docs-guides/source/flexible-inputs.html).

    Args:
        single: Whether the batch has to be 1: images and class labels come one at a time.
    """
    several = not single and len(config.batch_sizes) > 1 and len(model.inputs) == 1
    only = config.batch_sizes[0] if not single and len(config.batch_sizes) == 1 else 1
    return capture(module, model.inputs, examples=model.examples, batch_size=None if several else only)


def _convert(
    program: ExportedProgram,
    model: Model,
    config: CoremlConfig,
    interface: Interface,
    *,
    half: bool,
    where: str,
) -> Any:
    ct = coremltools()
    batch_size = fixed_batch_size(program)
    batch_sizes = sorted(config.batch_sizes) if batch_size is None else [batch_size]
    outputs = (*model.outputs, PROBABILITIES) if interface.labels else model.outputs
    passes = ct.PassPipeline.DEFAULT
    passes.remove_passes([RESCALING])
    try:
        with quiet():
            return ct.convert(
                _with_strides(program.run_decompositions(_recurrent_decompositions())),
                inputs=[
                    input_type(spec, batch_sizes, image=image)
                    for spec, image in zip(model.inputs, interface.images, strict=True)
                ],
                outputs=[ct.TensorType(name=output, dtype=np.float32) for output in outputs],
                minimum_deployment_target=ct.target[config.deployment_target],
                compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
                pass_pipeline=passes,
                skip_model_load=True,
            )
    except Exception as error:  # the converter raises a different class for every operator it cannot convert
        text = " ".join(str(error).split()) or type(error).__name__
        raise TargetError(
            f"coremltools cannot convert it: {text}",
            where=where,
            fix="replace the operator in the model, or leave coreml out of targets",
        ) from error


def _with_strides(program: ExportedProgram) -> ExportedProgram:
    """Pooling with its stride written out, which the converter does not complete: by default the window's size."""
    for node in program.graph.nodes:
        if re.fullmatch(r"aten\.(max|avg)_pool\dd.*", str(node.target)) and len(node.args) == 2:
            node.args = (*node.args, node.args[1])
            logger.debug("%s: stride written out, %s", node.name, node.args[1])
    return program


def _finished(model: Any, labels: tuple[str, ...]) -> Any:
    """The model with its class labels and a small specification; without the date: equal runs give equal files."""
    specification = model.get_spec()
    if labels:
        add_classifier(specification, labels)
    shrink(specification)
    specification.description.metadata.userDefined.pop(CONVERSION_DATE, None)
    with quiet():
        return coremltools().models.MLModel(specification, weights_dir=model.weights_dir, skip_model_load=True)


def _recurrent_decompositions() -> dict[Any, Any]:
    """Recurrent layers unrolled into products and gates: the converter takes neither LSTM nor GRU from torch.export."""
    aten = torch.ops.aten
    return dict(get_decompositions([aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input]))


def _save(model: Any, path: Path) -> None:
    """Save under a temporary name and rename, so that the package appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as staged:
        with quiet():
            model.save(str(staged))
        (staged / DEBUG_MAPPING).unlink(missing_ok=True)  # for ExecuTorch only; as large as a small model
