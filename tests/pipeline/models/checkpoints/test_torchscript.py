"""TorchScript archives: what they compute comes back as a program, and nothing in them runs outside their process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.core import CheckpointError, TensorSpec
from pipeline.core.bounded import Finished
from pipeline.models.capture import capture, example_inputs, fixed_batch_size
from pipeline.models.checkpoints import torchscript
from pipeline.models.checkpoints.torchscript import convert
from pipeline.models.load import load
from pipeline.recipe import ModelSource


@pytest.fixture(autouse=True)
def in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert without the time that another process takes to start, but for the tests that are about it."""
    if request.function is not test_an_archive_is_loaded_in_a_process_of_its_own:
        monkeypatch.setattr(
            torchscript,
            "run_bounded",
            lambda function, *arguments, **_: Finished(function(*arguments), "", "", 0.0),
        )


def image(*shape: int, name: str = "x", **more: Any) -> TensorSpec:
    return TensorSpec(name=name, shape=shape, **more)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))  # type: ignore[no-any-return]


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer = nn.Embedding(10, 8), nn.GRU(8, 4, batch_first=True)

    def forward(self, ids: Tensor, scale: Tensor) -> dict[str, Tensor]:
        hidden = self.layer(self.embed(ids))[0]
        return {"hidden": hidden, "last": hidden[:, -1] * scale}


class Flattened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc(x.view(x.shape[0], -1)), x * 2


class OneSample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.reshape(1, 16))  # type: ignore[no-any-return]


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        total = x
        while bool(total.sum() < 100):
            total = total + x.abs() + 1
        return total


IDS = (image(6, name="ids", dtype="int64", range=(0, 10)), image(1, name="scale"))
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[TensorSpec, ...]]] = {
    "convolutions": (Convolutions, (image(3, 8, 8),)),
    "tokens, as a dictionary": (Tokens, IDS),
    "flattened, as a tuple": (Flattened, (image(4, 4),)),
    "one sample at a time": (OneSample, (image(4, 4),)),
}


def saved(path: Path, module: nn.Module, inputs: tuple[TensorSpec, ...]) -> nn.Module:
    """The module in eval mode, after it was traced and saved."""
    torch.manual_seed(0)
    module.eval()
    torch.jit.save(torch.jit.trace(module, example_inputs(inputs), strict=False, check_trace=False), str(path))
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_a_traced_archive_becomes_a_program_that_computes_the_same(name: str, tmp_path: Path) -> None:
    build, inputs = CASES[name]
    module = saved(tmp_path / "model.pt", build(), inputs)
    model = load(ModelSource(checkpoint=Path("model.pt"), inputs=inputs), tmp_path)
    values = example_inputs(inputs, 1 if build is OneSample else 3)
    expected, found = module(*values), model.module(*values)
    if isinstance(expected, dict):
        assert model.outputs == ("hidden", "last")
        expected = tuple(expected.values())
    torch.testing.assert_close(found, expected if isinstance(found, Tensor) else type(found)(expected))
    assert fixed_batch_size(capture(model.module, model.inputs)) == (1 if build is OneSample else None)
    assert "TorchScript" in model.notes[0]


@pytest.mark.filterwarnings("ignore")
def test_a_frozen_and_a_scripted_archive_are_read_where_torch_converts_them(tmp_path: Path) -> None:
    module = Convolutions().eval()
    inputs = (image(3, 8, 8),)
    values = example_inputs(inputs, 2)
    for script in (torch.jit.script(module), torch.jit.freeze(torch.jit.script(module))):
        torch.jit.save(script, str(tmp_path / "model.pt"))
        model = load(ModelSource(checkpoint=Path("model.pt"), inputs=inputs), tmp_path)
        torch.testing.assert_close(model.module(*values), module(*values))
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    torch.jit.save(torch.jit.script(attention), str(tmp_path / "model.pt"))  # its branches depend on no value
    model = load(ModelSource(checkpoint=Path("model.pt"), inputs=(image(5, 8),)), tmp_path)
    x = torch.randn(1, 5, 8)
    torch.testing.assert_close(model.module(x), attention(x))
    torch.jit.save(torch.jit.script(Branching()), str(tmp_path / "model.pt"))
    with pytest.raises(CheckpointError, match="TorchScript that torch cannot convert") as caught:
        load(ModelSource(checkpoint=Path("model.pt"), inputs=(image(3),)), tmp_path)
    assert "state dict" in str(caught.value.fix)


class Writing(nn.Module):
    """Writes a file when it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)  # type: ignore[no-any-return]

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return (self.fc.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        torch.save(state[0], "was_run")
        self.training = state[1]


class WritingLater(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, "was_run")
        return x + 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("build", "what"), [(Writing, "__setstate__"), (WritingLater, "torch.save")])
def test_code_that_reaches_outside_is_refused_before_it_is_loaded(
    build: Callable[[], nn.Module], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.jit.save(torch.jit.script(build()), "model.pt")
    with pytest.raises(CheckpointError, match=f"its code holds {what}"):
        load(ModelSource(checkpoint=Path("model.pt"), inputs=(image(2),)), tmp_path)
    assert not Path("was_run").exists()


@pytest.mark.filterwarnings("ignore")
def test_wrong_inputs_are_refused_with_torchs_reason(tmp_path: Path) -> None:
    saved(tmp_path / "model.pt", nn.Linear(4, 2), (image(4),))
    with pytest.raises(CheckpointError, match=r"fails on x \[1, 5\] float32: .*shapes cannot be multiplied") as caught:
        convert(str(tmp_path / "model.pt"), [image(5).model_dump()])
    assert "model.inputs" in str(caught.value.fix)
    with pytest.raises(CheckpointError, match="does not say what its inputs are"):
        load(ModelSource(checkpoint=Path("model.pt")), tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_an_archive_is_loaded_in_a_process_of_its_own(tmp_path: Path) -> None:
    module = saved(tmp_path / "model.pt", nn.Linear(4, 2), (image(4),))
    model = load(ModelSource(checkpoint=Path("model.pt"), inputs=(image(4),)), tmp_path)
    torch.testing.assert_close(model.module(torch.ones(2, 4)), module(torch.ones(2, 4)))


def test_a_damaged_archive_is_one_error(tmp_path: Path) -> None:
    saved(tmp_path / "model.pt", nn.Linear(4, 2), (image(4),))
    content = bytearray((tmp_path / "model.pt").read_bytes())
    start = content.index(b"data.pkl") + 40
    content[start : start + 200] = bytes(200)
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot be read|is not a TorchScript archive|damaged") as caught:
        load(ModelSource(checkpoint=Path("model.pt"), inputs=(image(4),)), tmp_path)
    assert caught.value.fix
