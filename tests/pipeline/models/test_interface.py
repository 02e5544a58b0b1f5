"""Whatever a module takes and returns: its model is right, sample by sample, or refused with a cause and a fix."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import targets
from pipeline.core import EdgewrightError, Model, TensorSpec
from pipeline.core.arrays import Array
from pipeline.core.outputs import output_tuple
from pipeline.data.open import from_dataset
from pipeline.models.capture import capture
from pipeline.models.function import require_function
from pipeline.models.load import from_module
from pipeline.models.outputs import leaves
from pipeline.stages.export import export
from tests.networks.interfaces import CASES, Case

SAMPLES = 8


class Samples:
    def __init__(self, arrays: list[Array]) -> None:
        self._arrays = arrays

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Array, ...]:
        return tuple(array[index] for array in self._arrays)


def samples_of(case: Case) -> list[Array]:
    numbers = np.random.default_rng(0)
    return [
        case.values[each.name] if each.name in case.values else numbers.normal(size=(SAMPLES, *each.shape)).astype("f4")
        for each in case.inputs
    ]


def model_of(case: Case, module: nn.Module) -> Model:
    samples = from_dataset(Samples(samples_of(case)), case.inputs)
    return from_module(module, case.inputs, outputs=case.outputs, samples=samples)


def loaded_and_captured(case: Case) -> None:
    torch.manual_seed(0)
    model = model_of(case, case.build())
    require_function(model.module, model.examples)
    capture(model.module, model.inputs, examples=model.examples)


def one_by_one(case: Case, module: nn.Module, inputs: tuple[Tensor, ...]) -> list[list[Tensor]]:
    """What the user's own module returns for each sample alone, as flat rows of float64, by output."""
    rows = []
    parameters = {each.name: value for each, value in zip(case.inputs, inputs, strict=True)}
    for index in range(len(inputs[0])):
        given = {name: value[index : index + 1] for name, value in parameters.items()}
        try:
            result = module(**given)
        except TypeError:
            result = module(*given.values())
        rows.append([value.double().flatten() for _, value in leaves(result)])
    return [list(column) for column in zip(*rows, strict=True)]


def assert_right(case: Case) -> None:
    torch.manual_seed(0)
    module = case.build()
    model = model_of(case, module)
    assert model.outputs == case.names
    assert len(model.examples[0]) == SAMPLES
    with torch.no_grad():
        expected = one_by_one(case, _twin(case), model.examples)
        found = output_tuple(model.module(*model.examples)) if not _alone(model) else None
        for batch_size in (None, 1):
            program = capture(model.module, model.inputs, examples=model.examples, batch_size=batch_size)
            step = 1 if batch_size or _alone(model) else SAMPLES
            parts = [
                output_tuple(program.module()(*(value[start : start + step] for value in model.examples)))
                for start in range(0, SAMPLES, step)
            ]
            outputs = [torch.cat(values) for values in zip(*parts, strict=True)]
            for column, output in zip(expected, outputs, strict=True):
                assert output.dtype in (torch.float32, torch.int64, torch.bool)
                torch.testing.assert_close(
                    output.reshape(SAMPLES, -1).double(), torch.stack(column), rtol=2e-3, atol=2e-3
                )
    assert found is None or all(value.shape[0] == SAMPLES for value in found)


def _twin(case: Case) -> nn.Module:
    """The user's own module once more, in float32 and eval mode, as it was written."""
    torch.manual_seed(0)
    module = case.build()
    return (module if isinstance(module, nn.DataParallel) else module.float()).eval()


def _alone(model: Model) -> bool:
    try:
        with torch.no_grad():
            model.module(*model.examples)
    except RuntimeError:
        return True
    return False


@pytest.mark.parametrize("name", CASES)
def test_a_module_is_right_or_refused_with_a_cause_and_a_fix(name: str) -> None:
    case = CASES[name]
    if case.refused is None:
        assert_right(case)
        return
    with pytest.raises(EdgewrightError, match=case.refused) as caught:
        loaded_and_captured(case)
    assert caught.value.fix


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nested", "batch merged with tokens", "squeezed", "masked mean", "classes only"])
def test_every_target_holds_what_became_of_the_interface(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = model_of(CASES[name], CASES[name].build())
    for exported in export(model, [targets.get(each) for each in ("onnx", "coreml", "tflite")], tmp_path):
        assert exported.status == "ok", exported.reason
        assert exported.verified is not None
        assert exported.verified.original_sqnr_db.keys() == set(CASES[name].names)


def test_from_module_names_every_output_and_copies_when_the_module_returns_a_tuple() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.layer(x), x.flip(1)

    module = Two()
    model = from_module(module, [TensorSpec(name="x", shape=(3,))])
    assert model.outputs == ("output", "output_1")
    assert model.module is not module
    assert module.training


def test_the_list_is_long_enough() -> None:
    assert len(CASES) >= 60


class Channels(nn.Module):
    """Returns its channels first, rightly or in another order of samples; one value of each sample is no number."""

    def __init__(self, odd: float, *, mixed: bool) -> None:
        super().__init__()
        self.odd, self.mixed = odd, mixed

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat((x, torch.full_like(x[:, :1], self.odd)), 1)
        return y.reshape(4, -1) if self.mixed else y.permute(1, 0)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_samples_are_told_apart_where_an_output_holds_values_that_are_no_numbers(odd: float) -> None:
    inputs = [TensorSpec(name="x", shape=(3,))]
    assert from_module(Channels(odd, mixed=False), inputs).outputs == ("output",)
    with pytest.raises(EdgewrightError, match="mixes the samples"):
        from_module(Channels(odd, mixed=True), inputs)
