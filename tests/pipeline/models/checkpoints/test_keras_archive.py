"""Keras archives: the network computes what Keras computes, and what has no equal is refused by its name."""

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from pipeline.core import CheckpointError
from pipeline.core.bounded import Finished
from pipeline.data.open import from_dataset
from pipeline.models.checkpoints import keras_archive
from pipeline.models.checkpoints.keras_archive import read_keras
from pipeline.models.load import from_module, load
from pipeline.recipe import Budget, ModelSource, QuantizeConfig
from pipeline.stages.quantize import quantize


@pytest.fixture(autouse=True)
def in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read without the time that another process takes to start, but for the test that is about it."""
    if request.function is not test_a_dense_layer_computes_by_hand:
        monkeypatch.setattr(
            keras_archive, "run_bounded", lambda function, *arguments, **_: Finished(function(*arguments), "", "", 0.0)
        )


def layer(kind: str, name: str, **config: Any) -> dict[str, Any]:
    return {
        "module": "keras.layers",
        "class_name": kind,
        "config": {"name": name, **config},
        "registered_name": None,
        "build_config": {"input_shape": [None, 2]},
    }


def test_layers_whose_names_become_one_are_refused(tmp_path: Path) -> None:
    """Torch takes no slash in a module's name; one layer in the place of both would be silently wrong."""
    layers = [layer("ReLU", name) for name in ("a/b", "a_b")]
    with pytest.raises(CheckpointError, match=r"'a_b'.*name like another"):
        read_keras(archive(tmp_path / "model.keras", *layers), ())


DENSE = layer("Dense", "fc", use_bias=True, activation="relu")
WEIGHTS = {"layers/dense/vars/0": np.array([[1.0, -1], [2, 1]]), "layers/dense/vars/1": np.array([0.5, 0])}


def archive(path: Path, *layers: dict[str, Any], weights: Any = WEIGHTS) -> Path:
    """A sequential model of two inputs."""
    first = layer("InputLayer", "values", batch_shape=[None, 2], dtype="float32")
    config = {"class_name": "Sequential", "config": {"name": "net", "layers": [first, *layers]}}
    stored = io.BytesIO()
    with h5py.File(stored, "w") as file:
        for name, array in weights.items():
            file[name] = array
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", json.dumps(config))
        file.writestr("model.weights.h5", stored.getvalue())
    return path


def test_a_dense_layer_computes_by_hand(tmp_path: Path) -> None:
    archive(tmp_path / "model.keras", DENSE)
    model = load(ModelSource(checkpoint=Path("model.keras")), tmp_path)
    assert [(spec.name, spec.shape) for spec in model.inputs] == [("values", (2,))]
    assert model.module(torch.tensor([[1.0, 1.0], [0.0, 1.0]])).tolist() == [[3.5, 0.0], [2.5, 1.0]]
    assert "Keras archive" in model.notes[0]


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (layer("Lambda", "mine"), r"'mine' \(Lambda\)"),
        (DENSE | {"module": "my_layers", "registered_name": "mine>Dense"}, r"'fc' \(Dense\)"),
        (DENSE | {"class_name": "Denes"}, r"'fc' \(Denes\); did you mean 'Dense'\?"),
        (layer("Dense", "fc", use_bias=True, activation="my_function"), r"with the activation 'my_function'"),
        (layer("Conv2D", "c", data_format="channels_first"), r"'c' \(Conv2D\) with data_format: channels_first"),
        (layer("LSTM", "l", activation="relu") | {}, "activation: relu|is not a model"),
    ],
)
def test_a_layer_without_an_equal_is_refused_by_its_name(changed: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=problem) as caught:
        read_keras(archive(tmp_path / "model.keras", changed), ())
    assert caught.value.fix


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ({}, "is not a model of Keras 3"),
        (WEIGHTS | {"layers/dense/vars/1": np.ones(3)}, r"bias has the shape \[3\], not \[2\]"),
        ({"layers/dense/vars/0": h5py.ExternalLink("/etc/passwd", "/")}, "in other files"),
        ({"layers/dense/vars/0": h5py.SoftLink("/layers")}, "in other files"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=problem):
        read_keras(archive(tmp_path / "model.keras", DENSE, weights=weights), ())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models, each with an input and outputs."""
    pytest.importorskip("keras")
    folder = tmp_path_factory.mktemp("keras")
    subprocess.run(
        [sys.executable, Path(__file__).with_name("keras_models.py"), folder], check=True, capture_output=True
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["images", "tokens", "MobileNetV2", "ResNet50", "EfficientNetB0"])
def test_the_network_computes_what_keras_computes(name: str, saved: Path) -> None:
    network, _ = read_keras(saved / f"{name}.keras", ())
    stored = np.load(saved / f"{name}.npz")
    x = torch.from_numpy(stored["x"])
    with torch.no_grad():
        outputs = network(x.permute(0, 3, 1, 2) if x.ndim == 4 else x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert len(outputs) == len(stored.files) - 1
    for index, output in enumerate(outputs):
        found = output.permute(0, 2, 3, 1) if output.ndim == 4 else output
        expected = stored[f"output_{index}"]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5 * float(np.abs(expected).max()))


class Noise:
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Any]:
        return (np.random.default_rng(index).normal(size=(3, 64, 64)).astype("f4"),)


@pytest.mark.slow
def test_all_of_a_network_of_keras_is_quantized(saved: Path) -> None:
    network, specs = read_keras(saved / "MobileNetV2.keras", ())
    samples = from_dataset(Noise(), specs)
    model = from_module(network, specs, samples=samples)
    result = quantize(model, QuantizeConfig(observers=("minmax",)), samples, budget=Budget())
    assert result.history[-1].skipped == ()
    x = model.examples[0]
    with torch.no_grad():
        before, after = network(x).log(), result.module(x)
    after = (after[0] if isinstance(after, tuple | list) else after).clamp_min(1e-6).log()
    before, after = before - before.mean(1, keepdim=True), after - after.mean(1, keepdim=True)
    assert 10 * torch.log10(before.square().sum() / (before - after).square().sum()) > 15
