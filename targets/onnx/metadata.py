"""What a file says about itself: written when it is lowered, read when it is opened or run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.core import Model, Preprocessing

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Metadata:
    """The entries that loading and running a file needs.

    Attributes:
        preprocessing: How stored samples became the model's inputs.
        shapes: Per input, the shape without the batch that the model was made with; all sizes are static here.
        pixel_inputs: Inputs that take stored uint8 pixels, because the preprocessing is part of the file.
    """

    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    pixel_inputs: tuple[str, ...] = ()


def describe(onnx_model: ir.Model, model: Model) -> None:
    """Store classes, preprocessing, shapes and the recipe's hash in a model that holds no other entries."""
    properties = onnx_model.metadata_props
    properties.clear()
    if model.classes:
        properties["classes"] = ",".join(model.classes)
    if model.recipe_sha256:
        properties["recipe_sha256"] = model.recipe_sha256
    properties["preprocessing"] = model.preprocessing.model_dump_json(exclude_defaults=True)
    properties["shapes"] = json.dumps({spec.name: spec.shape for spec in model.inputs})


def read(properties: dict[str, str]) -> Metadata:
    """The entries of any file; those that it lacks are empty."""
    shapes = json.loads(properties.get("shapes", "{}"))
    pixels = properties.get("pixel_inputs", "")
    return Metadata(
        preprocessing=Preprocessing.model_validate_json(properties.get("preprocessing", "{}")),
        shapes={name: tuple(shape) for name, shape in shapes.items()},
        pixel_inputs=tuple(pixels.split(",")) if pixels else (),
    )
