from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from pipeline.data.open import from_dataset
from pipeline.data.source import DataSource
from tests.pipeline.data.opening import GREY, open_set


def test_from_dataset_yields_inputs_and_labels_when_given_a_torch_dataset() -> None:
    images, labels = torch.randn(5, 1, 4, 4), torch.tensor([0, 1, 2, 3, 4])
    batches = list(from_dataset(TensorDataset(images, labels), GREY).batches(2))
    assert [len(batch.inputs[0]) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([batch.inputs[0] for batch in batches]), images)


def test_factory_is_imported_from_the_working_directory_when_the_recipe_names_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_data.py").write_text(
        "import torch\n"
        "def numbers(count):\n"
        "    images = torch.arange(count * 16.0).reshape(count, 1, 4, 4)\n"
        "    return torch.utils.data.TensorDataset(images, torch.arange(count))\n"
    )
    monkeypatch.chdir(tmp_path)
    samples = open_set(DataSource(factory="my_data:numbers", kwargs={"count": 3}), scale=2.0)
    (batch,) = samples.batches(3)
    assert batch.inputs[0].flatten().tolist() == [2.0 * value for value in range(48)]
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1, 2]
