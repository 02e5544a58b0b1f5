"""Train the keyword demo's checkpoint in FP32 on spoken words.

Run ``python -m calibration_data.keyword.train``; about 10 minutes on one core. Writes ``model.safetensors`` and prints
the accuracy on the test words, by other voices, which nothing else uses.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from calibration_data.keyword.network import keyword_net
from calibration_data.keyword.pack import HERE
from calibration_data.keyword.speak import BANDS, FRAMES, WORDS, utterances
from calibration_data.training import in_memory, scores, stored, train, trained
from pipeline.core import Preprocessing, TensorSpec
from pipeline.data.labels import class_indices
from pipeline.data.samples import Batch, SampleSet
from pipeline.recipe import TrainingConfig

WEIGHTS = Path(__file__).parent / "model.safetensors"
TRAINING_WORDS = 10_000
PREPROCESSING = Preprocessing(scale=1 / 255, mean=(0.45,), std=(0.15,))
FEATURES = TensorSpec(name="features", shape=(1, BANDS, FRAMES))
FORM = class_indices(len(WORDS))
TRAINING = TrainingConfig(
    epochs=16, batch_size=128, optimizer="adamw", learning_rate=0.006, weight_decay=0.02, warmup_ratio=0.1
)


def cross_entropy(module: nn.Module, batch: Batch) -> Tensor:
    """Softmax cross entropy with labels smoothed by 0.05 (https://arxiv.org/abs/1512.00567)."""
    assert batch.labels is not None
    return functional.cross_entropy(module(*batch.inputs), batch.labels, label_smoothing=0.05)


def committed_samples(name: str) -> SampleSet:
    """The words that are kept: ``train`` or ``test``."""
    return stored(HERE / f"{name}.npz", FEATURES, PREPROCESSING, FORM, inputs=["features"])


def load_trained() -> nn.Module:
    """The trained network, in eval mode."""
    return trained(keyword_net, WEIGHTS)


def main() -> None:
    """Train, save, and report the accuracy."""
    words = utterances("train", range(TRAINING_WORDS))
    samples = in_memory(words, FEATURES, PREPROCESSING, FORM, inputs=["features"])
    train(keyword_net, cross_entropy, samples, TRAINING, WEIGHTS)
    print(scores(load_trained(), committed_samples("test"), "classification"))


if __name__ == "__main__":
    main()
