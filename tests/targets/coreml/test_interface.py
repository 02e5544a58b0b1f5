"""Images, class labels and metadata: what an app sees of a package."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.core import Model, Preprocessing, TargetError, TensorSpec
from pipeline.data.preprocessing import stored_pixels
from pipeline.recipe import CoremlConfig
from pipeline.target import Lowered
from targets.coreml import CoremlTarget
from targets.coreml.interface import affine
from targets.coreml.interpreter import Interpreter
from targets.coreml.sdk import coremltools
from tests.targets.coreml.programs import HandQuantized, model_of

Lower = Callable[..., tuple[CoremlTarget, Lowered]]
CLASSES = ("cat", "dog", "eel")
PREPROCESSING = Preprocessing(scale=1 / 255, mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.3))
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 6)).astype(np.uint8)


def classifier() -> Model:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)).eval()
    model = model_of(network, TensorSpec(name="photo", shape=(3, 8, 6)))
    return dataclasses.replace(
        model, outputs=("logits",), classes=CLASSES, preprocessing=PREPROCESSING, recipe_sha256="0123456789abcdef"
    )


def preprocessed(values: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    mean, std = (np.reshape(part, (1, 3, 1, 1)) for part in (PREPROCESSING.mean, PREPROCESSING.std))
    return ((values * PREPROCESSING.scale - mean) / std).astype(np.float32)


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> Lower:
    """Lowers the classifier with the given options, once each."""

    @cache
    def lower(**options: bool) -> tuple[CoremlTarget, Lowered]:
        target = CoremlTarget(CoremlConfig.model_validate(options))
        return target, target.lower(classifier(), tmp_path_factory.mktemp("packages"), name="model")

    return lower


def test_image_package_preprocesses_pixels_as_the_recipe_says(lowered: Lower) -> None:
    _, package = lowered(image_input=True)
    expected = classifier().module(torch.from_numpy(preprocessed(PIXELS[:1]))).detach().numpy()
    got = Interpreter(package.path).run({"photo": PIXELS[:1]})
    np.testing.assert_allclose(got["logits"], expected, rtol=1e-4, atol=1e-5)


def test_image_session_takes_the_models_own_values(lowered: Lower) -> None:
    target, package = lowered(image_input=True)
    values = preprocessed(PIXELS)
    (got,) = target.load(package, threads=1).run((values,))
    np.testing.assert_allclose(got, classifier().module(torch.from_numpy(values)).detach().numpy(), atol=1e-5)


def test_image_package_is_an_image_of_its_size_for_core_ml(lowered: Lower) -> None:
    _, package = lowered(image_input=True)
    (entry,) = coremltools().models.MLModel(str(package.path), skip_model_load=True).get_spec().description.input
    image = entry.type.imageType
    assert (image.width, image.height, image.ColorSpace.Name(image.colorSpace)) == (6, 8, "RGB")


def test_opened_image_package_takes_uint8(lowered: Lower) -> None:
    target, package = lowered(image_input=True, classifier=True)
    opened = target.open(package.path)
    assert opened.inputs == (TensorSpec(name="photo", shape=(3, 8, 6), dtype="uint8"),)
    probabilities, logits = target.load(opened, threads=1).run((PIXELS,))
    np.testing.assert_allclose(probabilities, torch.from_numpy(logits).softmax(-1).numpy(), rtol=1e-5)


def test_classifier_gives_the_label_the_probabilities_and_the_logits(lowered: Lower) -> None:
    _, package = lowered(classifier=True)
    values = preprocessed(PIXELS[:1])
    logits = classifier().module(torch.from_numpy(values)).detach()
    got = Interpreter(package.path).run({"photo": values})
    assert got["class_label"] == CLASSES[int(logits.argmax())]
    probabilities = got["class_label_probs"].item()
    assert tuple(probabilities) == CLASSES
    np.testing.assert_allclose(list(probabilities.values()), logits.softmax(-1)[0].numpy(), rtol=1e-5)
    np.testing.assert_allclose(got["logits"], logits.numpy(), rtol=1e-4, atol=1e-5)


def test_session_of_a_classifier_gives_the_models_outputs(lowered: Lower) -> None:
    target, package = lowered(classifier=True)
    values = preprocessed(PIXELS)
    (got,) = target.load(package, threads=1).run((values,))
    np.testing.assert_allclose(got, classifier().module(torch.from_numpy(values)).detach().numpy(), atol=1e-5)


def test_metadata_tells_where_the_package_comes_from(lowered: Lower) -> None:
    _, package = lowered()
    model = coremltools().models.MLModel(str(package.path), skip_model_load=True)
    assert model.author.startswith("edgewright ")
    assert model.version == "0123456789ab"
    assert model.short_description == "fp32 classifier of 3 classes, stages: none"
    own = model.user_defined_metadata
    assert own["edgewright.recipe_sha256"] == "0123456789abcdef"
    assert Preprocessing.model_validate_json(own["edgewright.preprocessing"]) == PREPROCESSING
    assert json.loads(own["edgewright.classes"]) == list(CLASSES)
    assert "com.github.apple.coremltools.conversion_date" not in own


def test_pixels_undo_preprocessing_for_every_level() -> None:
    levels = np.tile(np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16), (1, 3, 1, 1))
    np.testing.assert_array_equal(stored_pixels(preprocessed(levels), PREPROCESSING), levels)


def test_affine_is_the_identity_without_preprocessing() -> None:
    factor, offset = affine(Preprocessing())
    assert (factor.item(), offset.item()) == (1.0, 0.0)


def test_lower_refuses_images_when_no_input_can_be_one(tmp_path: Path) -> None:
    model = model_of(nn.Linear(4, 2), TensorSpec(name="x", shape=(4,)))
    with pytest.raises(TargetError, match="no input is float32 of shape"):
        CoremlTarget(CoremlConfig(image_input=True)).lower(model, tmp_path, name="model")


def test_lower_refuses_labels_when_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no class names"):
        CoremlTarget(CoremlConfig(classifier=True)).lower(
            model_of(HandQuantized(), quantized=True), tmp_path, name="model"
        )
