import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import calibration_data.fashion_mnist
from calibration_data.fashion_mnist.harder import train as harder
from calibration_data.fashion_mnist.harder.network import NETWORKS
from calibration_data.fashion_mnist.train import IMAGE, committed_samples, load_trained
from pipeline.models.capture import count_macs
from pipeline.tasks.evaluation import evaluate

HERE = Path(calibration_data.fashion_mnist.__file__).parent
MANIFEST = json.loads((HERE / "manifest.json").read_text())


@pytest.mark.parametrize("name", ["train.npz", "test.npz"])
def test_manifest_describes_the_committed_file_when_it_is_read(name: str) -> None:
    entry = MANIFEST["files"][name]
    content = (HERE / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    with np.load(HERE / name) as archive:
        for array, expected in entry["arrays"].items():
            assert list(archive[array].shape) == expected["shape"]
            assert str(archive[array].dtype) == expected["dtype"]
        assert set(np.unique(archive["labels"])) == set(range(len(MANIFEST["classes"])))


def test_model_card_names_the_committed_weights_when_they_are_hashed() -> None:
    digest = hashlib.sha256((HERE / "model.safetensors").read_bytes()).hexdigest()
    assert digest in (HERE / "MODEL_CARD.md").read_text()


@pytest.mark.slow
def test_checkpoint_reaches_the_model_cards_accuracy_when_all_test_images_are_classified() -> None:
    model = load_trained()
    assert evaluate(model, committed_samples("test"))["top1"] == pytest.approx(0.9358, abs=0.0003)  # of rounding
    assert 20e6 <= count_macs(model, (IMAGE,)) <= 80e6


@pytest.mark.parametrize("name", NETWORKS)
def test_harder_networks_are_those_that_models_json_describes_when_they_are_hashed(name: str) -> None:
    described = json.loads((HERE / "harder" / "models.json").read_text())["models"][name]
    digest = hashlib.sha256((HERE / "harder" / f"{name}.safetensors").read_bytes()).hexdigest()
    assert digest == described["sha256"]
    assert f"{described['top1']:.2%}".replace("%", " %") in (HERE / "harder" / "MODEL_CARD.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_harder_networks_reach_their_accuracy_when_all_test_images_are_classified(name: str) -> None:
    described = json.loads((HERE / "harder" / "models.json").read_text())["models"][name]
    found = evaluate(harder.load_trained(name), committed_samples("test"))["top1"]
    assert found == pytest.approx(described["top1"], abs=0.0003)  # of rounding
