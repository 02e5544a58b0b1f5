from pathlib import Path

import numpy as np
import pytest
import torch

import targets
from pipeline.core import DataError, EdgewrightError, TargetError, TensorSpec
from pipeline.execution.deployed import inspect, predict
from pipeline.models.load import from_module

IMAGE = TensorSpec(name="image", shape=(3, 8, 8))


class TwoInputs(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)

    def forward(self, image: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.conv(image).mean((2, 3))
        return features + shift, features - 2 * shift


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same network, in all three formats; its inputs are not in alphabetical order, nor are its outputs."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved")
    inputs = [IMAGE, TensorSpec(name="a_shift", shape=(4,))]
    model = from_module(TwoInputs(), inputs, outputs=("sum", "difference"))
    return {name: targets.get(name).lower(model, folder, name=name).path for name in targets.TARGETS}


def reference(image: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    torch.manual_seed(0)
    with torch.no_grad():
        first, second = TwoInputs()(torch.from_numpy(image), torch.from_numpy(shift))
    return first.numpy(), second.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "tflite", "coreml"])
def test_predict_writes_what_torch_computes_when_the_file_has_two_inputs_and_outputs(
    saved: dict[str, Path], tmp_path: Path, target: str
) -> None:
    rng = np.random.default_rng(0)
    image, shift = rng.normal(size=(5, 3, 8, 8)).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)
    np.savez(tmp_path / "in.npz", image=image, a_shift=shift)
    predict(saved[target], tmp_path / "in.npz", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as written:
        total, difference = reference(image, shift)
        np.testing.assert_allclose(written["sum"], total, atol=1e-5)
        np.testing.assert_allclose(written["difference"], difference, atol=1e-5)


@pytest.mark.slow
def test_open_reads_the_interface_from_the_file_when_nothing_else_is_known(saved: dict[str, Path]) -> None:
    for name, path in saved.items():
        lowered = targets.get(name).open(path)
        assert {spec.name: spec.shape for spec in lowered.inputs} == {"image": (3, 8, 8), "a_shift": (4,)}
        assert set(lowered.outputs) == {"sum", "difference"}
        assert lowered.variant == "fp32"


@pytest.mark.slow
def test_inspect_lists_float_operators_as_fallback_when_the_model_is_not_quantized(saved: dict[str, Path]) -> None:
    placement = inspect(saved["onnx"])
    assert placement.accelerated == 0
    assert sum(fallback.count for fallback in placement.fallback) == placement.operators


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": np.zeros((2, 3, 8, 8))}, "has no array 'a_shift'"),
        ({"image": np.zeros((2, 3, 9, 8)), "a_shift": np.zeros((2, 4))}, "has shape [2, 3, 9, 8]"),
        ({"image": np.zeros((2, 3, 8, 8)), "a_shift": np.zeros((3, 4))}, "different lengths"),
        ({"image": np.zeros((0, 3, 8, 8)), "a_shift": np.zeros((0, 4))}, "has shape [0, 3, 8, 8]"),
    ],
)
def test_predict_names_the_array_and_writes_nothing_when_it_does_not_fit(
    saved: dict[str, Path], tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "in.npz", **arrays)
    with pytest.raises(DataError) as caught:
        predict(saved["onnx"], tmp_path / "in.npz", tmp_path / "out.npz")
    assert message in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["in.npz"]


@pytest.mark.parametrize("suffix", [".onnx", ".tflite", ".mlpackage"])
@pytest.mark.parametrize("content", [None, b"", b"no model at all"])
def test_open_refuses_when_the_file_is_missing_or_no_model(tmp_path: Path, suffix: str, content: bytes | None) -> None:
    path = tmp_path / f"model{suffix}"
    if content is not None:
        path.write_bytes(content)
    np.savez(tmp_path / "in.npz", x=np.zeros(1))
    for call in (lambda: predict(path, tmp_path / "in.npz", tmp_path / "out.npz"), lambda: inspect(path)):
        with pytest.raises(EdgewrightError) as caught:
            call()
        assert str(path) in str(caught.value)


def test_open_names_the_suffixes_when_it_knows_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"\.onnx, \.mlpackage, \.tflite"):
        inspect(tmp_path / "model.engine")
