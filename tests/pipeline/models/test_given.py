"""Plain modules and plain samples: what each is taken as, and what is said of those that could be several things."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import pipeline as ew
from pipeline.models.given import as_model, as_samples

X = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 4
IDS, MASK = torch.arange(24).reshape(4, 6), torch.ones(4, 6, dtype=torch.int64)
PIXELS = (X * 40 + 120).clamp(0, 255).byte()
SCALED = ew.Preprocessing(resize=(8, 8), scale=1 / 255)


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.conv(image).mean((2, 3)))


class Texts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(32, 4), nn.Linear(4, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head((self.embed(input_ids) * attention_mask[..., None]).sum(1))


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor, *, scale: Tensor | None = None, detach: bool = False) -> Tensor:
        x = x.detach() if detach else x
        return self.head(x if scale is None else x * scale)


class Items(Dataset[Any]):
    def __init__(self, *items: Any) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        return self._items[index]


def pictures(folder: Path) -> Path:
    for index, pixels in enumerate(PIXELS[:4]):
        file = folder / "abcd"[index] / "1.png"
        file.parent.mkdir(parents=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file)
    return folder


def numbers_of(samples: ew.SampleSet) -> tuple[Tensor, ...]:
    return next(samples.batches(len(samples))).inputs


IMAGE_SAMPLES: dict[str, Any] = {
    "tensor": X,
    "array": X.numpy(),
    "doubles": X.double().numpy(),
    "tuple of one": (X,),
    "samples and labels": (X, Y),
    "mapping": {"image": X},
    "mapping with labels": {"image": X, "label": Y},
    "mapping of one under another name": {"pixels": X},
    "list of samples": list(X),
    "list of batches": [X[:4], X[4:8], X[8:]],
    "batches with labels": [(X[:4], Y[:4]), (X[4:8], Y[4:8]), (X[8:], Y[8:])],
    "list of pairs": [(x, int(y)) for x, y in zip(X, Y, strict=True)],
    "TensorDataset": TensorDataset(X, Y),
    "Dataset of mappings": Items(*({"image": x, "label": 1} for x in X)),
    "shuffled DataLoader": DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True),
    "DataLoader of mappings": DataLoader(Items(*({"image": x, "label": 1} for x in X)), batch_size=5),
    "DataLoader with a collate of its own": DataLoader(
        TensorDataset(X, Y), batch_size=4, collate_fn=lambda items: {"image": torch.stack([x for x, _ in items])}
    ),
}


@pytest.mark.parametrize("given", IMAGE_SAMPLES.values(), ids=IMAGE_SAMPLES)
@pytest.mark.parametrize("known", [False, True], ids=["module", "model"])
def test_samples_of_one_input_are_the_same_in_whatever_form_they_come(given: Any, known: bool) -> None:
    net: Any = ew.from_module(Images(), [ew.TensorSpec(name="image", shape=(3, 8, 8))]) if known else Images()
    model, samples = as_model(net, given, where="calibration")
    assert [(spec.name, spec.shape, spec.dtype) for spec in model.inputs] == [("image", (3, 8, 8), "float32")]
    assert samples is not None
    torch.testing.assert_close(numbers_of(samples)[0], X, rtol=0, atol=0)
    assert len(model.examples[0]) == 8


def test_labels_of_plain_samples_are_labels() -> None:
    for given in ((X, Y), {"image": X, "label": Y}, TensorDataset(X, Y)):
        _, samples = as_model(Images(), given, where="samples")
        assert samples is not None
        labels = next(samples.batches(12)).labels
        assert torch.as_tensor(labels).flatten().tolist() == Y.tolist()


TEXT_SAMPLES: dict[str, Any] = {
    "tuple": (IDS, MASK),
    "list": [IDS, MASK],
    "mapping in another order": {"attention_mask": MASK, "input_ids": IDS},
    "with labels": (IDS, MASK, torch.zeros(4)),
    "TensorDataset": TensorDataset(IDS, MASK, torch.zeros(4)),
    "pairs of inputs and label": [((ids, mask), 0) for ids, mask in zip(IDS, MASK, strict=True)],
    "mappings": [{"input_ids": ids, "attention_mask": mask} for ids, mask in zip(IDS, MASK, strict=True)],
}


@pytest.mark.parametrize("given", TEXT_SAMPLES.values(), ids=TEXT_SAMPLES)
def test_samples_of_several_inputs_are_named_as_forward_does(given: Any) -> None:
    model, samples = as_model(Texts(), given, where="calibration")
    found = [(spec.name, spec.shape, spec.dtype) for spec in model.inputs]
    assert found == [("input_ids", (6,), "int64"), ("attention_mask", (6,), "int64")]
    assert samples is not None
    assert [value.tolist() for value in numbers_of(samples)] == [IDS.tolist(), MASK.tolist()]


def test_inputs_with_a_default_are_taken_where_they_are_named() -> None:
    x, scale = torch.ones(4, 3), torch.full((4, 3), 2.0)
    assert [spec.name for spec in ew.from_module(Optional(), samples=x).inputs] == ["x"]
    model = ew.from_module(Optional(), samples={"scale": scale, "x": x})
    assert [spec.name for spec in model.inputs] == ["x", "scale"]


def test_parameter_that_no_file_can_name_is_called_input() -> None:
    class Odd(nn.Module):
        def forward(self, tensor: Tensor) -> Tensor:
            return tensor * 2

    assert [spec.name for spec in ew.from_module(Odd(), samples=torch.ones(4, 3)).inputs] == ["input"]


def test_integers_and_truth_values_keep_their_types_or_get_one_that_holds_them() -> None:
    class Any2(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float() * 2

    found = {
        str(values.dtype): ew.from_module(Any2(), samples=values).inputs[0].dtype
        for values in (np.ones((4, 3), kind) for kind in ("int16", "int32", "int64", "bool", "uint8", "float16"))
    }
    assert found == {
        "int16": "int32", "int32": "int32", "int64": "int64", "bool": "bool", "uint8": "uint8", "float16": "float32",
    }  # fmt: skip


def test_archive_is_read_by_the_names_of_the_inputs_or_by_the_only_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "named.npz", image=X.numpy(), other=X.numpy())
    np.savez(tmp_path / "only.npz", data=X.numpy(), labels=Y.numpy())
    np.savez(tmp_path / "texts.npz", attention_mask=MASK.numpy(), input_ids=IDS.numpy())
    for name in ("named.npz", "only.npz"):
        _, samples = as_model(Images(), str(tmp_path / name), where="calibration")
        assert samples is not None
        assert numbers_of(samples)[0].equal(X)
    model, _ = as_model(Texts(), tmp_path / "texts.npz", where="calibration")
    assert [spec.name for spec in model.inputs] == ["input_ids", "attention_mask"]
    np.savez(tmp_path / "unclear.npz", a=X.numpy(), b=X.numpy())
    with pytest.raises(ew.DataError, match=r"holds a, b, and the network takes 1 input \(image\)"):
        as_model(Images(), tmp_path / "unclear.npz", where="calibration")


def test_folder_of_images_is_read_as_the_preprocessing_says(tmp_path: Path) -> None:
    model = ew.from_module(Images(), samples=str(pictures(tmp_path / "photos")), preprocessing=SCALED)
    torch.testing.assert_close(model.examples[0], PIXELS[:4] / 255)
    _, again = as_model(model, tmp_path / "photos", where="calibration")
    assert again is not None
    torch.testing.assert_close(numbers_of(again)[0], PIXELS[:4] / 255)


def test_floats_in_memory_are_inputs_already_where_a_model_has_a_preprocessing() -> None:
    model = ew.from_module(Images(), samples=PIXELS, preprocessing=SCALED)
    torch.testing.assert_close(model.examples[0][0], PIXELS[0] / 255)
    _, samples = as_samples(X, model, where="calibration")
    assert numbers_of(samples)[0].equal(X)


def stored_pixels(tmp_path: Path) -> Iterator[Any]:
    np.savez(tmp_path / "pixels.npz", images=PIXELS.numpy())
    yield from (PIXELS, tmp_path / "pixels.npz", pictures(tmp_path / "photos"))
    yield Items(*(Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in PIXELS))
    yield list(PIXELS)


def test_pixels_are_refused_where_nothing_says_how_they_become_inputs(tmp_path: Path) -> None:
    known = ew.from_module(Images(), samples=X)
    for given in stored_pixels(tmp_path):
        for net in (Images(), known):
            with pytest.raises(ew.DataError, match="holds stored pixels") as error:
                as_model(net, given, where="calibration")
            assert "preprocessing=" in str(error.value.fix)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(X)


WRONG: dict[str, tuple[Any, str]] = {
    "number": (5, "is a int"),
    "word": ("no/such/folder", "no such file or folder"),
    "generator": ((x for x in X), "is a generator"),
    "stream": (DataLoader(Stream()), "IterableDataset"),
    "texts": (["a", "b"], "not numbers"),
    "nothing": ([], "holds no samples"),
    "no rows": (X[:0], "holds no samples"),
    "NaN": (X * float("nan"), "NaN or infinity"),
    "one sample without a batch": (X[0], "the model fails on image"),
    "tensors of odd shapes": ([X[0], X[1, :2]], r"shapes|fails on image \[1, 8, 8\]"),
    "complex": (X.to(torch.complex64), "complex64"),
    "sparse": (X.to_sparse(), "no plain tensor"),
    "rows of different counts": ((X, Y[:5]), "shapes"),
    "several inputs for one": ({"image": X, "other": X}, "has 'other', which the network does not take"),
    "a set of sets": ({"train": TensorDataset(X), "test": TensorDataset(X)}, "is a dict of train, test"),
    "failing Dataset": (Items("a"), "not numbers"),
}


@pytest.mark.parametrize(("given", "problem"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("known", [False, True], ids=["module", "model"])
def test_wrong_samples_are_refused_saying_what_is_taken(given: Any, problem: str, known: bool) -> None:
    if known and problem == "the model fails on image":
        problem = "shape"
    net: Any = ew.from_module(Images(), samples=X) if known else Images()
    with pytest.raises(ew.EdgewrightError, match=problem) as error:
        as_model(net, given, where="calibration")
    assert error.value.where
    assert error.value.fix


def test_list_that_could_be_samples_or_batches_is_refused_with_both_meanings() -> None:
    with pytest.raises(ew.DataError, match=r"could be 2 samples input \[4, 3\] float32, or 8 samples input \[3\]"):
        as_model(nn.Linear(3, 2), [torch.randn(4, 3)] * 2, where="calibration")
    model = ew.from_module(nn.Linear(3, 2), samples=torch.randn(4, 3))  # its shape decides
    assert len(as_samples([torch.randn(4, 3)] * 2, model, where="calibration")[1]) == 8


@pytest.mark.parametrize("given", [None, 5, {"state_dict": X}, Images], ids=["None", "int", "state dict", "class"])
def test_what_is_no_model_is_refused_saying_what_is_taken(given: Any) -> None:
    with pytest.raises(ew.EdgewrightError, match=f"is a {type(given).__name__}") as error:
        as_model(given, X, where="calibration")
    assert "torch.nn.Module" in str(error.value.fix)


def test_path_of_a_program_is_a_model(tmp_path: Path) -> None:
    program = torch.export.export(Images().eval(), (X,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "net.pt2")
    model, _ = as_model(str(tmp_path / "net.pt2"), X, where="calibration")
    assert [spec.name for spec in model.inputs] == ["image"]
    with pytest.raises(ew.CheckpointError, match="weights alone"):
        as_model("weights.safetensors", X, where="calibration")


def test_module_without_samples_is_refused_saying_how_to_name_its_inputs() -> None:
    with pytest.raises(ew.EdgewrightError, match="nothing says what Images takes"):
        as_model(Images(), None, where="samples")


def test_module_stays_as_it_is() -> None:
    net = Images().train()
    as_model(net, X, where="calibration")
    assert net.training
