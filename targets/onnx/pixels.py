"""Image inputs that take stored pixels: the preprocessing becomes part of the file.

An input ``(N, C, H, W) float32`` becomes ``uint8``, in the layout that the images are stored in. Resizing and cropping
stay outside, since they depend on the size of the image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch

from pipeline.core import Model, Preprocessing, TargetError, TensorSpec
from pipeline.data.preprocessing import normalise, stored_pixels
from targets.onnx.metadata import Metadata
from targets.onnx.qdq import Encoding, encoding, initializer

if TYPE_CHECKING:
    from pipeline.target import Array

TO_NHWC, TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


def take_pixels(onnx_model: ir.Model, model: Model) -> tuple[str, ...]:
    """Let every image input take uint8 pixels, and name these inputs in the metadata.

    Returns:
        Their names.

    Raises:
        TargetError: No input is an image.
    """
    names = [spec.name for spec in model.inputs if spec.dtype == "float32" and len(spec.shape) == 3]
    if not names:
        raise TargetError(
            "image_input asks for an image, and no input has the shape [channels, height, width]",
            where="targets: onnx",
            fix="leave image_input out",
        )
    for index, value in enumerate(list(onnx_model.graph.inputs)):
        if value.name in names:
            _take_pixels(onnx_model.graph, index, value, model.preprocessing)
    onnx_model.metadata_props["pixel_inputs"] = ",".join(names)
    return tuple(names)


def pixels(values: Array, preprocessing: Preprocessing) -> Array:
    """The stored pixels that preprocessing made ``values`` from, in the stored layout.

    >>> pixels(np.ones((1, 1, 2, 2), np.float32), Preprocessing(scale=1 / 255, mean=(0.25,), std=(0.5,))).tolist()
    [[[[191, 191], [191, 191]]]]
    """
    stored = stored_pixels(values, preprocessing)
    return stored.transpose(TO_NHWC) if preprocessing.layout == "nhwc" else stored


def as_taken(spec: TensorSpec, values: Array, metadata: Metadata) -> Array:
    """What a file takes for an input: pixels, where it preprocesses them itself and the values are preprocessed."""
    preprocessed = spec.name in metadata.pixel_inputs and spec.dtype != "uint8"
    return pixels(values, metadata.preprocessing) if preprocessed else values


def _take_pixels(graph: ir.Graph, index: int, value: ir.Value, preprocessing: Preprocessing) -> None:
    assert value.shape is not None  # an image has four axes
    stored = ir.Value(name=value.name, type=ir.TensorType(ir.DataType.UINT8))
    order = TO_NHWC if preprocessing.layout == "nhwc" else (0, 1, 2, 3)
    stored.shape = ir.Shape([value.shape[axis] for axis in order])
    nodes = [ir.node("Transpose", [stored], {"perm": TO_NCHW})] if preprocessing.layout == "nhwc" else []
    image = nodes[-1].outputs[0] if nodes else stored
    image.type, image.shape = stored.type, value.shape
    value.name = f"{value.name}_float"

    for node, _ in list(value.uses()):
        rule = encoding(node) if node.op_type == "QuantizeLinear" else None
        if rule is not None and are_integers(preprocessing, rule):
            node.outputs[0].replace_all_uses_with(image)
            graph.remove(node, safe=True)
    last = image
    if value.uses():
        nodes.append(ir.node("Cast", [image], {"to": ir.DataType.FLOAT}))
        for op, parameter in zip(("Mul", "Sub", "Div"), _per_channel(preprocessing), strict=True):
            if not np.all(parameter == (0 if op == "Sub" else 1)):
                constant = initializer(graph, f"{stored.name}.{op.lower()}", parameter)
                nodes.append(ir.node(op, [nodes[-1].outputs[0], constant]))
        for node in nodes:
            if node.op_type != "Transpose":
                node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
        last = nodes[-1].outputs[0]
        value.replace_all_uses_with(last)
    if nodes:
        graph.insert_before(graph[0], nodes)
    graph.inputs[index] = stored


def are_integers(preprocessing: Preprocessing, rule: Encoding) -> bool:
    """Whether the quantized image holds the pixels themselves: true of all 256, in every channel.

    A range that spans the pixels from 0 to 255 has their step, and the zero point takes care of the mean.

    >>> are_integers(Preprocessing(mean=(10.2,)), Encoding(np.float32(1), np.uint8(10), 1))
    True
    """
    if rule.zero_point.dtype != np.uint8 or rule.scale.ndim:
        return False
    stored = np.arange(256)
    channels = max(1, len(preprocessing.mean), len(preprocessing.std))
    reals = normalise(torch.arange(256.0).expand(1, channels, 1, 256), preprocessing).numpy()
    integers = np.clip(np.rint(reals / rule.scale) + rule.zero_point, 0, 255)
    return bool((integers == stored).all())


def _per_channel(preprocessing: Preprocessing) -> tuple[Array, Array, Array]:
    """Scale, mean and deviation as ``(1, C or 1, 1, 1) float32``."""
    return (
        np.array(preprocessing.scale, np.float32).reshape(1, 1, 1, 1),
        np.array(preprocessing.mean or 0, np.float32).reshape(1, -1, 1, 1),
        np.array(preprocessing.std or 1, np.float32).reshape(1, -1, 1, 1),
    )
