"""From an exported program to coremltools' model: what it is asked, what is done around it, and what its errors say."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import Node

from pipeline.core import EdgewrightError, Model, TargetError
from pipeline.models.capture import fixed_batch_size
from pipeline.recipe import CoremlConfig
from targets.coreml import padding
from targets.coreml.forms import decomposed
from targets.coreml.interface import PROBABILITIES, Interface, add_classifier, input_type
from targets.coreml.precision import in_half
from targets.coreml.sdk import coremltools, quiet
from targets.coreml.shrink import shrink

logger = logging.getLogger(__name__)

CONVERSION_DATE = "com.github.apple.coremltools.conversion_date"
RESCALING = "common::distributive_quantized_binary_op_scale_normalization"
"""Divides the scales around an addition by one of them: the quotients do not exist in FP16, and parity is lost."""


def convert(
    program: ExportedProgram,
    model: Model,
    config: CoremlConfig,
    interface: Interface,
    *,
    half: bool,
    kept: frozenset[str] = frozenset(),
    where: str,
) -> Any:
    """The coremltools model of a program.

    Args:
        half: Whether operators compute in FP16.
        kept: Values that FP16 does not hold; what makes or reads them computes in FP32.

    Raises:
        TargetError: The converter fails; names the operator where it is known.
    """
    ct = coremltools()
    batch_size = fixed_batch_size(program)
    batch_sizes = sorted(config.batch_sizes) if batch_size is None else [batch_size]
    names = (*model.outputs, PROBABILITIES) if interface.labels else model.outputs
    passes = ct.PassPipeline.DEFAULT
    passes.remove_passes([RESCALING])
    passes.insert_pass(passes.passes.index(padding.BEFORE), padding.register())
    with errors(where), quiet():
        prepared = _with_own_outputs(_with_strides(decomposed(program)))
        return ct.convert(
            prepared,
            inputs=[
                input_type(spec, batch_sizes, image=image)
                for spec, image in zip(model.inputs, interface.images, strict=True)
            ],
            outputs=[
                ct.TensorType(name=name, dtype=dtype) for name, dtype in zip(names, _dtypes(prepared), strict=True)
            ],
            minimum_deployment_target=ct.target[config.deployment_target],
            compute_precision=(
                ct.transform.FP16ComputePrecision(op_selector=in_half(kept)) if half else ct.precision.FLOAT32
            ),
            pass_pipeline=passes,
            skip_model_load=True,
        )


@contextmanager
def errors(where: str) -> Iterator[None]:
    """Turn whatever coremltools or torch raises into a `TargetError` that names the operator, if it can be told."""
    try:
        yield
    except (EdgewrightError, OSError):
        raise
    except Exception as error:  # the converter raises a different class for every operator it cannot convert
        text = " ".join(str(error).split())
        if not isinstance(error, NotImplementedError | ValueError | RuntimeError):
            text = f"{type(error).__name__}: {text}" if text else type(error).__name__
        operator = _failing_operator(error)
        raise TargetError(
            f"coremltools cannot convert {operator or 'it'}: {text or type(error).__name__}",
            where=where,
            fix="replace the operator in the model, or leave coreml out of targets",
        ) from error


def _failing_operator(error: Exception) -> str | None:
    """The operator that the converter was at when it failed, with its name in the graph."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("node")
        if frame.f_code.co_name == "convert_single_node" and node is not None:
            return f"{node.kind} {node.name!r}"
    return None


def _with_strides(program: ExportedProgram) -> ExportedProgram:
    """Pooling with its stride written out, which the converter does not complete: by default the window's size."""
    for node in program.graph.nodes:
        if re.fullmatch(r"aten\.(max|avg)_pool\dd.*", str(node.target)) and len(node.args) == 2:
            node.args = (*node.args, node.args[1])
            logger.debug("%s: stride written out, %s", node.name, node.args[1])
    return program


def _with_own_outputs(program: ExportedProgram) -> ExportedProgram:
    """The program with a tensor of its own for every output: one that is an input, a constant or another output as
    well is multiplied by one. The converter gives a tensor one name.
    """
    signature = program.graph_signature
    given = {spec.arg.name: spec.kind for spec in signature.input_specs if hasattr(spec.arg, "name")}
    (output,) = program.graph.find_nodes(op="output")
    values: list[Any] = list(output.args[0])
    taken: set[Node] = set()
    for index, value in enumerate(values):
        if value in taken or value.name in given:
            with program.graph.inserting_before(output):
                copy = program.graph.call_function(torch.ops.aten.mul.Tensor, (value, 1))
            copy.meta = dict(value.meta)
            values[index] = copy
            signature.output_specs[index].arg.name = copy.name
            logger.debug("output %d: a copy of %s", index, value.name)
        taken.add(value)
    output.args = (tuple(values),)
    return program


def _dtypes(program: ExportedProgram) -> list[type[np.generic]]:
    """The dtypes of the outputs: Core ML gives floats, or int32 for integers and truth values."""
    (output,) = program.graph.find_nodes(op="output")
    return [np.float32 if value.meta["val"].is_floating_point() else np.int32 for value in output.args[0]]


def finished(model: Any, labels: tuple[str, ...]) -> Any:
    """The model with its class labels and a small specification, without the date."""
    specification = model.get_spec()
    if labels:
        add_classifier(specification, labels)
    shrink(specification)
    specification.description.metadata.userDefined.pop(CONVERSION_DATE, None)
    with quiet():
        return coremltools().models.MLModel(specification, weights_dir=model.weights_dir, skip_model_load=True)
