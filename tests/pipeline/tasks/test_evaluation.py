import torch
from torch import nn

from pipeline.core import TensorSpec
from pipeline.data.open import from_dataset
from pipeline.tasks.evaluation import evaluate


def test_evaluate_gives_agreement_alone_when_there_are_no_labels() -> None:
    inputs = (TensorSpec(name="x", shape=(2,)),)
    samples = from_dataset(torch.utils.data.TensorDataset(torch.tensor([[2.0, 1.0], [1.0, 2.0]])), inputs)
    assert evaluate(nn.Identity(), samples, reference=nn.Identity()) == {"agreement": 1.0, "signal": 1.0, "cosine": 1.0}
    assert evaluate(nn.Identity(), samples) == {}
