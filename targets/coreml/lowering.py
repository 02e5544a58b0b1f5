"""From a captured program to a saved ML Program (``.mlpackage``)."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from pipeline.core import Model, TargetError
from pipeline.core.files import atomic_write
from pipeline.models.capture import capture, fixed_batch_size
from pipeline.recipe import CoremlConfig
from pipeline.target import Lowered, Variant
from targets.coreml.compression import compress
from targets.coreml.constants import DEQUANTIZE, fold, has_constants
from targets.coreml.conversion import convert, errors, finished
from targets.coreml.interface import Deployed, Interface, describe, interface_of
from targets.coreml.precision import beyond_half, in_single
from targets.coreml.ranks import has_many_axes, lower_ranks
from targets.coreml.resizing import is_rewritten, resize
from targets.coreml.saving import save

logger = logging.getLogger(__name__)


def lower(model: Model, config: CoremlConfig, out_dir: Path, *, name: str, variant: Variant | None = None) -> Lowered:
    """Convert and save; see `pipeline.target.Target.lower`.

    A quantized program keeps its int8 weights as ``constexpr`` operators and its quantize/dequantize pairs, and
    computes in FP16 between them, as the Neural Engine does, but for values that FP16 does not hold. The FP32 original
    computes in FP32, its compressed variants in FP16.
    """
    interface = interface_of(model, config, where=name)
    form = variant or ("int8" if model.quantized else "fp32")
    half = config.precision == "float16" if form == "int8" else form != "fp32"
    module = fold_weights(model.module) if model.quantized else model.module
    if not interface.is_plain:
        module = Deployed(module, interface, model.preprocessing)
    package = _Package(model, config, interface, form, where=name)
    notes = []
    program = _capture(module, model, config, single=not interface.is_plain)
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / f"{name}.mlpackage"
    with atomic_write(path) as staged:
        try:
            lowered = package.write(program, staged, half=half)
        except TargetError as error:
            if fixed_batch_size(program) is not None:
                raise
            logger.debug("converted for batch 1 instead: %s", error.problem)
            notes.append(f"no dynamic batch: {error.problem}")
            program = _capture(module, model, config, single=True)
            lowered = package.write(program, staged, half=half)
        if half:
            lowered, more = package.in_range(program, lowered)
            notes += more
    return replace(lowered, path=path, notes=(*notes, *lowered.notes))


@dataclass(frozen=True, slots=True)
class _Package:
    """What stays the same however often a program is converted."""

    model: Model
    config: CoremlConfig
    interface: Interface
    form: Variant
    where: str

    def write(self, program: ExportedProgram, path: Path, *, half: bool, kept: frozenset[str] = frozenset()) -> Lowered:
        """Convert and save; ``half`` and ``kept`` as for `conversion.convert`."""
        model, interface = self.model, self.interface
        converted = convert(program, model, self.config, interface, half=half, kept=kept, where=self.where)
        with errors(self.where):
            done = finished(compress(converted, self.form), interface.labels)
            describe(done, model, self.form, embedded=any(interface.images))
            save(done, path)
        batch_size = fixed_batch_size(program)
        sizes = ", ".join(map(str, sorted(self.config.batch_sizes)))
        notes = [f"batch {batch_size} only" if batch_size else f"batches of {sizes}"]
        if model.quantized:
            notes.append(f"computes in {'FP16' if half else 'FP32'} between integer operators")
        if any(interface.images):
            notes.append("takes images, and does the preprocessing itself")
        return Lowered(
            path=path,
            variant=self.form,
            inputs=model.inputs,
            outputs=model.outputs,
            batch_size=batch_size,
            pixels=tuple(spec.name for spec, image in zip(model.inputs, interface.images, strict=True) if image),
            notes=tuple(notes),
        )

    def in_range(self, program: ExportedProgram, lowered: Lowered) -> tuple[Lowered, list[str]]:
        """The package, written again with FP32 where FP16 does not hold a value, and what to note of that."""
        beyond = beyond_half(lowered, self.model)
        if beyond:
            lowered = self.write(program, lowered.path, half=True, kept=beyond)
            if beyond_half(lowered, self.model):
                return self.write(program, lowered.path, half=False), ["FP16 does not hold the values of this model"]
        count = in_single(lowered)
        return lowered, [f"{count} operators compute in FP32: FP16 does not hold their values"] if count else []


def fold_weights(module: nn.Module) -> nn.Module:
    """A copy of a quantized program in which weights are stored as the integers they are quantized to.

    The program holds float weights followed by a quantize operator. Core ML stores a weight as int8 only where the
    operand of its dequantize is a constant.
    """
    folded = copy.deepcopy(module)
    assert isinstance(folded, fx.GraphModule)  # a quantized program is one
    fold(folded)
    constants = [_attribute(folded, node) for node in folded.graph.find_nodes(op="get_attr")]
    logger.debug("%d weights stored as int8", sum(value.dtype == torch.int8 for value in constants))
    for node in folded.graph.find_nodes(op="call_function", target=torch.ops.aten.prelu.default):
        _give_value(folded, node.args[1])
    for node in list(folded.graph.nodes):
        if node.target in DEQUANTIZE and node.args[0].op == "get_attr" and not _attribute(folded, node.args[0]).ndim:
            _give_value(folded, node)
    folded.recompile()
    return folded


def _give_value(module: fx.GraphModule, dequantized: Any) -> None:
    """Store what a dequantize of constants gives: the converter takes the slopes of a PReLU only as they are, and gets
    a single number wrong.
    """
    if dequantized.op != "call_function":
        return
    values = [_attribute(module, part) if isinstance(part, fx.Node) else part for part in dequantized.args]
    name = f"{dequantized.name}_value"
    module.register_buffer(name, dequantized.target(*values))
    with module.graph.inserting_before(dequantized):
        dequantized.replace_all_uses_with(module.graph.get_attr(name))
    module.graph.erase_node(dequantized)
    logger.debug("%s: stored as floats", dequantized.name)


def _attribute(module: fx.GraphModule, node: fx.Node) -> Any:
    owner, _, name = str(node.target).rpartition(".")
    return getattr(module.get_submodule(owner), name)


def _capture(module: nn.Module, model: Model, config: CoremlConfig, *, single: bool) -> ExportedProgram:
    """With a dynamic batch where several sizes are asked for and the model has one input; Core ML before iOS 18 takes
    alternative shapes on one input only (https://apple.github.io/coremltools/docs-guides/source/flexible-inputs.html).

    Args:
        single: Whether the batch has to be 1: images and class labels come one at a time.
    """
    several = not single and len(config.batch_sizes) > 1 and len(model.inputs) == 1
    only = config.batch_sizes[0] if not single and len(config.batch_sizes) == 1 else 1
    batch_size = None if several else only
    return _rewritten(capture(module, model.inputs, examples=model.examples, batch_size=batch_size), model)


def _rewritten(program: ExportedProgram, model: Model) -> ExportedProgram:
    """The program with constants computed, interpolations that the converter lacks as products, and few axes."""
    awkward = any(is_rewritten(node) or has_many_axes(node) for node in program.graph.nodes)
    if not has_constants(program) and not awkward:
        return program
    graph = program.module(check_guards=False)
    resize(graph)
    lower_ranks(graph)
    logger.debug("%d constants computed", fold(graph))
    return capture(graph, model.inputs, examples=model.examples, batch_size=fixed_batch_size(program))
