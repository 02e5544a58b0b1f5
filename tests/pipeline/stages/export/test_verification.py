"""Files that compute something else than the model are found when they are written, and the operator is named."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.core import Model, TensorSpec
from pipeline.models.load import from_module
from pipeline.stages.export import export
from pipeline.stages.export.verification import Limit, difference
from targets.onnx import OnnxTarget
from tests.pipeline.stages.export.targets import Crashing, Miswriting, Raising, Rounding

aten = torch.ops.aten
TANH_AS_SIGMOID = {aten.tanh.default: aten.sigmoid.default}


class Detector(nn.Module):
    """Large boxes and small scores, from a common trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.boxes, self.scores = nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(x).relu()
        return self.boxes(features) * 100, self.scores(features).tanh()


def detector() -> Model:
    torch.manual_seed(0)
    model = from_module(Detector(), [TensorSpec(name="x", shape=(4,))], outputs=("boxes", "scores"))
    return replace(model, examples=(torch.randn(6, 4),))


def test_export_records_each_output_of_both_files_when_they_are_right(tmp_path: Path) -> None:
    (exported,) = export(detector(), [OnnxTarget()], tmp_path)
    assert exported.status == "ok"
    assert exported.verified is not None
    assert exported.verified.samples == 6
    for figures in (exported.verified.original_sqnr_db, exported.verified.optimized_sqnr_db):
        assert set(figures) == {"boxes", "scores"}
        assert all(value is None or value > 100 for value in figures.values())


def test_export_names_output_operator_and_layer_when_a_small_output_is_wrong(tmp_path: Path) -> None:
    (exported,) = export(detector(), [Miswriting(TANH_AS_SIGMOID)], tmp_path)
    assert exported.status == "failed"
    assert exported.optimized is None
    assert exported.reason is not None
    assert "original.onnx: output 'scores' has an SQNR of" in exported.reason
    assert "it begins at aten.tanh.default" in exported.reason
    assert exported.verified is not None
    assert exported.verified.original_sqnr_db["boxes"] is None or exported.verified.original_sqnr_db["boxes"] > 100
    assert (exported.verified.original_sqnr_db["scores"] or 0) < 20
    assert not list(tmp_path.glob("**/.parts*"))


class Chain(nn.Module):
    """Five layers, each with the same activation."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return x


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 3])
def test_the_first_wrong_operator_is_found_when_it_is_any_of_a_chain(tmp_path: Path, first: int) -> None:
    torch.manual_seed(0)
    model = replace(from_module(Chain(), [TensorSpec(name="x", shape=(4,))]), examples=(torch.randn(4, 4),))
    written: list[str] = []

    class Watched(Miswriting):
        def lower(self, model, out_dir, *, name, variant=None):  # type: ignore[no-untyped-def]
            graph = model.module
            if isinstance(graph, torch.fx.GraphModule):  # a part: remember where it was cut
                written.append(next(iter(graph.graph.nodes.__reversed__())).args[0][0].name)
            return super().lower(model, out_dir, name=name, variant=variant)

    (exported,) = export(model, [Watched(TANH_AS_SIGMOID, first=first)], tmp_path)
    expected = "tanh" if first == 0 else f"tanh_{first}"
    assert exported.reason is not None
    assert "it begins at aten.tanh.default" in exported.reason
    assert expected in written  # the search cut right behind it


def test_export_fails_one_target_and_goes_on_when_its_runtime_crashes(tmp_path: Path) -> None:
    crashed, fine = export(detector(), [Crashing(), OnnxTarget()], tmp_path)
    assert crashed.status == "failed"
    assert crashed.reason is not None
    assert "killed by signal 6" in crashed.reason
    assert fine.status == "ok"


def test_export_fails_one_target_and_goes_on_when_its_converter_raises_anything(tmp_path: Path) -> None:
    raised, fine = export(detector(), [Raising(), OnnxTarget()], tmp_path)
    assert (raised.status, raised.reason) == ("failed", "KeyError: 'aten.fft'")
    assert fine.status == "ok"


def test_export_says_why_and_passes_when_arithmetic_explains_the_difference(tmp_path: Path) -> None:
    hardly = {aten.tanh.default: aten.erf.default}  # 20 dB apart, so not useless
    model = detector()
    (exported,) = export(model, [Rounding(hardly)], tmp_path)
    assert exported.status == "ok"
    assert exported.verified is not None
    assert [text.endswith("rounds twice") for text in exported.verified.explained] == [True, True]
    (useless,) = export(model, [Rounding(TANH_AS_SIGMOID)], tmp_path)
    assert useless.status == "failed"


class Amplifying(nn.Module):
    """Its output shows the last bits of a convolution, which depend on the order in which it adds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(32, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.conv(x) * 3e4).tanh()


def amplifying() -> Model:
    torch.manual_seed(0)
    model = from_module(Amplifying(), [TensorSpec(name="x", shape=(32, 9, 9))])
    return replace(model, examples=(torch.randn(4, 32, 9, 9),))


def test_export_passes_and_says_so_when_the_order_of_sums_decides(tmp_path: Path) -> None:
    (exported,) = export(amplifying(), [OnnxTarget()], tmp_path)
    assert exported.status == "ok"
    assert exported.verified is not None
    assert [": rounding decides: " in text for text in exported.verified.explained] == [True, True]


@pytest.mark.slow
def test_order_of_sums_excuses_nothing_when_a_file_is_further_away(tmp_path: Path) -> None:
    (exported,) = export(amplifying(), [Miswriting(TANH_AS_SIGMOID)], tmp_path)
    assert exported.status == "failed"


def test_export_writes_and_does_not_run_when_there_are_no_samples(tmp_path: Path) -> None:
    (exported,) = export(replace(detector(), examples=()), [OnnxTarget()], tmp_path)
    assert (exported.status, exported.verified) == ("ok", None)


ONE = torch.tensor([[3.0, 4.0]])


@pytest.mark.parametrize(
    ("expected", "found", "problem"),
    [
        pytest.param(ONE, ONE + 1e-5, None, id="close"),
        pytest.param(ONE, ONE.T, "has shape [2, 1] instead of [1, 2]", id="layout"),
        pytest.param(ONE, ONE + torch.tensor([[0.0, 0.5]]), "an SQNR of 20.0 dB, at least 60 dB", id="far"),
        pytest.param(ONE, ONE * math.nan, "is not finite", id="NaN"),
        pytest.param(ONE, ONE.long(), "is int64 instead of float32", id="integers for reals"),
        pytest.param(torch.arange(100), torch.arange(100).clamp(1), None, id="one tie in a hundred"),
        pytest.param(torch.arange(100), torch.arange(100).clamp(20), "80% of output 'y' is right", id="classes"),
        pytest.param(torch.zeros(1, 2), torch.full((1, 2), 1e-8), None, id="zeros, nearly"),
        pytest.param(torch.zeros(1, 2), torch.ones(1, 2), "an SQNR of -inf dB", id="zeros, not at all"),
        pytest.param(-ONE / 0, -ONE / 0, None, id="the same infinities"),
    ],
)
def test_difference_says_what_is_wrong_when_outputs_are_not_the_same(
    expected: Tensor, found: Tensor, problem: str | None
) -> None:
    text = difference(["y"], [expected], [found], Limit(60.0, 0.99))
    assert text is None if problem is None else text is not None and problem in text


def test_difference_counts_outputs_when_one_is_missing() -> None:
    assert difference(["y", "z"], [ONE, ONE], [ONE], Limit(60.0, 1.0)) == "it gives 1 outputs instead of 2"
