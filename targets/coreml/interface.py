"""What a package takes and gives: tensors, or images with the preprocessing inside, and class labels.

The interface is fixed by a module around the model, so that Core ML, the converter and the interpreter all see ordinary
operators.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.core import Model, Preprocessing, TargetError, TensorSpec
from pipeline.core.outputs import output_tuple
from pipeline.recipe import CoremlConfig
from targets.coreml.sdk import coremltools, quiet

if TYPE_CHECKING:
    from pipeline.target import Variant

LABEL, PROBABILITIES = "class_label", "class_probabilities"
"""Output of a classifier, and the internal value that it is the largest of."""
PREPROCESSING_KEY = "edgewright.preprocessing"
_COLOR_LAYOUTS = {1: "G", 3: "RGB"}


@dataclass(frozen=True, slots=True)
class Interface:
    """What a package takes and gives besides the model's own tensors.

    Attributes:
        images: Per input, whether it arrives as an image.
        labels: Class names to store; empty where none are asked for.
    """

    images: tuple[bool, ...]
    labels: tuple[str, ...]

    @property
    def is_plain(self) -> bool:
        """Whether the package takes and gives the model's own tensors; if not, one sample at a time."""
        return not any(self.images) and not self.labels


class Deployed(nn.Module):
    """A model with its preprocessing in front and, for a classifier, the probabilities behind the other outputs.

    Args:
        interface: Which inputs are pixels ``(N, C, H, W)`` in [0, 255]; with labels, the first output is taken for
            logits ``(N, classes)``.
    """

    factor: Tensor
    offset: Tensor

    def __init__(self, model: nn.Module, interface: Interface, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model, self._interface = model, interface
        factor, offset = affine(preprocessing)
        self.register_buffer("factor", factor, persistent=False)
        self.register_buffer("offset", offset, persistent=False)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        prepared = [
            tensor * self.factor + self.offset if image else tensor
            for tensor, image in zip(inputs, self._interface.images, strict=True)
        ]
        outputs = output_tuple(self.model(*prepared))
        return (*outputs, outputs[0].softmax(-1)) if self._interface.labels else outputs


def affine(preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """Factor and offset, each ``(1, C or 1, 1, 1)``: ``(x * scale - mean) / std`` is ``x * factor + offset``.

    >>> factor, offset = affine(Preprocessing(scale=0.5, mean=(1.0, 2.0), std=(4.0, 2.0)))
    >>> factor.flatten().tolist(), offset.flatten().tolist()
    ([0.125, 0.25], [-0.25, -1.0])
    """
    mean = torch.tensor(preprocessing.mean or (0.0,), dtype=torch.float64)
    std = torch.tensor(preprocessing.std or (1.0,), dtype=torch.float64)
    factor, offset = preprocessing.scale / std + torch.zeros_like(mean), -mean / std
    return factor.reshape(1, -1, 1, 1).float(), offset.reshape(1, -1, 1, 1).float()


def interface_of(model: Model, config: CoremlConfig, *, where: str) -> Interface:
    """The interface that a recipe asks for.

    Raises:
        TargetError: Images are asked for, and no input can be one; or class labels, and the model has none; or an
            input has a dtype that Core ML does not take.
    """
    for spec in model.inputs:
        if spec.dtype in ("uint8", "int8"):
            raise TargetError(
                f"Core ML takes no {spec.dtype} tensors, as input {spec.name!r} is",
                where=where,
                fix="let the model take float32 or int32, or float32 pixels with image_input: true",
            )
    images = tuple(config.image_input and _is_image(spec) for spec in model.inputs)
    if config.image_input and not any(images):
        raise TargetError(
            "image_input is set, but no input is float32 of shape [1, H, W] or [3, H, W]",
            where=where,
            fix="remove image_input from the recipe",
        )
    if config.classifier and not model.classes:
        raise TargetError(
            "classifier is set, but the model has no class names",
            where=where,
            fix="add model: {classes: [...]} to the recipe",
        )
    return Interface(images, model.classes if config.classifier else ())


def _is_image(spec: TensorSpec) -> bool:
    return spec.dtype == "float32" and len(spec.shape) == 3 and spec.shape[0] in _COLOR_LAYOUTS


def input_type(spec: TensorSpec, batch_sizes: list[int], *, image: bool) -> Any:
    """The coremltools type of one input."""
    ct = coremltools()
    if image:
        return ct.ImageType(spec.name, (1, *spec.shape), color_layout=_COLOR_LAYOUTS[spec.shape[0]])
    shapes = [(size, *spec.shape) for size in batch_sizes]
    shape = ct.EnumeratedShapes(shapes=shapes, default=shapes[0]) if len(shapes) > 1 else shapes[0]
    return ct.TensorType(name=spec.name, shape=shape, dtype=_interface_dtype(spec))


def _interface_dtype(spec: TensorSpec) -> type[np.generic]:
    """Core ML inputs are float32, float16 or int32; other integers arrive as int32."""
    return np.float32 if spec.dtype == "float32" else np.float16 if spec.dtype == "float16" else np.int32


def describe(mlmodel: Any, model: Model, variant: Variant, *, embedded: bool) -> None:
    """Write the metadata that Xcode shows, and that the session needs.

    Args:
        embedded: Whether the package does the preprocessing itself.
    """
    mlmodel.author = f"edgewright {metadata.version('edgewright')}"
    mlmodel.version = model.recipe_sha256[:12]
    kind = f"classifier of {len(model.classes)} classes" if model.classes else "model"
    mlmodel.short_description = f"{variant} {kind}, stages: {', '.join(r.stage for r in model.history) or 'none'}"
    own = {
        "edgewright.variant": variant,
        PREPROCESSING_KEY: model.preprocessing.model_dump_json(),
        "edgewright.preprocessing_embedded": json.dumps(embedded),
    }
    if model.recipe_sha256:
        own["edgewright.recipe_sha256"] = model.recipe_sha256
    if model.classes:
        own["edgewright.classes"] = json.dumps(model.classes)
    mlmodel.user_defined_metadata.update(own)


def add_classifier(specification: Any, labels: tuple[str, ...]) -> None:
    """Give the class label and a dictionary of probabilities before the other outputs; in place.

    The converter can add these only in the place of all other outputs, so its operator is taken from a program of one
    operator.

    Args:
        specification: A ``Model`` message whose last output is `PROBABILITIES`, of shape ``(1, classes)``.
    """
    template = _classifying(labels, specification.specificationVersion)
    block = _body(specification)
    operation = block.operations.add()
    operation.CopyFrom(_body(template).operations[-1])
    operation.inputs["probabilities"].arguments[0].name = PROBABILITIES
    block.outputs[:] = [*_body(template).outputs, *(name for name in block.outputs if name != PROBABILITIES)]
    description = specification.description
    others = [entry for entry in description.output if entry.name != PROBABILITIES]
    classified = [*template.description.output, *others]
    del description.output[:]
    description.output.extend(classified)
    description.predictedFeatureName = template.description.predictedFeatureName
    description.predictedProbabilitiesName = template.description.predictedProbabilitiesName


def _classifying(labels: tuple[str, ...], version: int) -> Any:
    """The specification of a program that does nothing but classify."""
    ct = coremltools()
    from coremltools.converters.mil import Builder

    oldest = next(target for target in ct.target if target.value == version)

    @Builder.program(input_specs=[Builder.TensorSpec((1, len(labels)))], opset_version=oldest)  # type: ignore[untyped-decorator]
    def program(x: Any) -> Any:
        return Builder.identity(x=x)

    with quiet():
        return ct.convert(
            program,
            classifier_config=ct.ClassifierConfig(list(labels), LABEL),
            minimum_deployment_target=oldest,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        ).get_spec()


def _body(specification: Any) -> Any:
    function = specification.mlProgram.functions["main"]
    return function.block_specializations[function.opset]
