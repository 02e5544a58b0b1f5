import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.core import EdgewrightError, Model, TensorSpec
from pipeline.core.arrays import Array
from pipeline.core.bounded import run_bounded
from pipeline.data.open import from_dataset
from pipeline.data.samples import SampleSet, Source
from pipeline.machine import memory
from pipeline.machine.memory import (
    Footprint,
    affordable_batch,
    allocated,
    available_bytes,
    footprint,
    require_batch,
    require_memory,
)
from pipeline.models.load import from_module, load
from pipeline.recipe import Budget, ModelSource, PruneConfig, QuantizeConfig, TrainingConfig
from pipeline.stages.benchmark import benchmark
from pipeline.stages.export import export
from pipeline.stages.prune import prune
from pipeline.stages.quantize import quantize
from pipeline.stages.quantize.graph.canonical import canonical_graph
from pipeline.stages.quantize.improve.adaround import round_adaptively
from pipeline.stages.quantize.improve.batch_norms import reestimated
from pipeline.stages.quantize.judge import Judge
from pipeline.stages.quantize.ranges.calibration import calibrate
from pipeline.tasks.evaluation import evaluate
from pipeline.tasks.lookup import suggested_for
from pipeline.training.loop import fit
from targets.onnx import OnnxTarget
from tests.pipeline.machine import memory_calls
from tests.pipeline.stages.quantize.prepared import prepare

VALUES = TensorSpec(name="x", shape=(1000,))


class OneAtATime(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(1, 1000) * 2


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1000, 500), nn.ReLU(), nn.Linear(500, 10))


def samples(count: int = 64) -> SampleSet:
    values = torch.randn(count, 1000, generator=torch.Generator().manual_seed(1))
    return from_dataset([(value, index % 10) for index, value in enumerate(values)], (VALUES,))


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how much memory there is."""
    return lambda nbytes: monkeypatch.setattr(memory, "available_bytes", lambda: nbytes)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: torch.zeros(1000), 4000),
        (lambda: torch.zeros(1000).tanh().tanh().tanh(), 8000),  # an operator's input and its result
        (lambda: torch.zeros(1000, requires_grad=True).tanh().tanh().tanh(), 16000),  # kept for the backward pass
        (lambda: torch.zeros(1000).view(10, 100).t()[1:], 4000),
        (lambda: torch.zeros(1000).add_(1).relu_(), 4000),
        (lambda: [torch.zeros(1000).sum() for _ in range(10)], 4000 + 10 * 4),
        (lambda: torch.zeros(1000).double(), 12000),
        (lambda: torch.zeros(1000).sort(), 4000 + 4000 + 8000),
    ],
    ids=["one", "chain", "gradients", "views", "in place", "one after the other", "wider", "two results"],
)
def test_allocated_is_the_peak_of_living_tensors(call: Callable[[], object], expected: int) -> None:
    assert allocated(call) == expected


def test_footprint_separates_what_grows_with_the_batch() -> None:
    mask = torch.ones(500, 1000)
    found = footprint(lambda count: (torch.zeros(count, 1000) * 2, mask * 2))
    assert found == Footprint(fixed=500 * 4000, per_sample=4000)  # of two chained tensors, one is freed before the mask


def test_footprint_does_not_change_random_numbers() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    footprint(lambda count: torch.rand(count))
    assert torch.equal(torch.rand(3), expected)


def test_footprint_of_one_sample_counts_when_a_network_takes_one_at_a_time() -> None:
    network = OneAtATime()
    assert footprint(lambda count: network(torch.zeros(count, 1000))) == Footprint(8000, 0)
    assert footprint(lambda count: network(torch.zeros(count, 999))) == Footprint(0, 0)


def test_error_names_step_need_rest_and_fix(left: Callable[[int], None]) -> None:
    left(3 * 2**29)
    require_memory("step", 3 * 2**29, fix="less")
    with pytest.raises(EdgewrightError) as caught:
        require_memory("step", 5 * 2**30, fix="less")
    assert str(caught.value) == "step: needs about 5 GiB of memory, and 1.5 GiB are available\n  fix: less"


def test_refused_batch_names_the_largest_that_fits(left: Callable[[int], None]) -> None:
    left(1000)
    require_batch("step", Footprint(100, 10), 80, extra=100, setting="batch_size")
    with pytest.raises(EdgewrightError, match=r"step in batches of 81.*\n.*set batch_size to 80 or less"):
        require_batch("step", Footprint(100, 10), 81, extra=100, setting="batch_size")
    with pytest.raises(EdgewrightError, match="use a machine with more memory"):
        require_batch("step", Footprint(100, 10), 1, extra=900, setting="batch_size")


def test_affordable_batch_takes_half_of_the_memory(left: Callable[[int], None]) -> None:
    left(1000)
    assert affordable_batch("step", Footprint(100, 10), 256) == 40
    assert affordable_batch("step", Footprint(100, 10), 8) == 8
    assert affordable_batch("step", Footprint(990, 10), 8) == 1
    with pytest.raises(EdgewrightError, match="step, one sample: needs"):
        affordable_batch("step", Footprint(991, 10), 8)


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/a/b", {"a/b": ("max", 100, 0), "a": ("5000", 2000, 500), ".": ("max", 0, 0)}, 3500),
        ("0::/a/b", {"a/b": ("1000", 100, 0), "a": ("5000", 2000, 500)}, 900),
        ("0::/a", {"a": ("1000", 1200, 0)}, 0),
        ("0::/hidden", {".": ("3000", 1000, 0)}, 2000),
        ("0::/", {}, None),
        ("7:cpu:/a\n4:memory:/a\n0::/", {"memory/a": ("3000", 1000, 400), "memory": (str(2**63 - 4096), 5, 0)}, 2400),
        ("4:memory:/hidden", {"memory": ("3000", 1000, 0)}, 2000),
        ("1:cpu:/a", {"memory/a": ("3000", 1000, 0)}, None),
    ],
    ids=["v2 parent", "v2 own", "over", "v2 container", "no limit", "v1", "v1 container", "v1 without"],
)
def test_available_is_what_control_groups_leave(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    groups: str,
    files: dict[str, tuple[str, int, int]],
    expected: int | None,
) -> None:
    (tmp_path / "own").write_text(f"{groups}\n")
    for name, (limit, usage, cache) in files.items():
        folder = tmp_path / "groups" / name
        folder.mkdir(parents=True, exist_ok=True)
        first = name.startswith("memory")
        (folder / ("memory.limit_in_bytes" if first else "memory.max")).write_text(f"{limit}\n")
        (folder / ("memory.usage_in_bytes" if first else "memory.current")).write_text(f"{usage}\n")
        (folder / "memory.stat").write_text(f"cache 7\n{'total_' if first else ''}inactive_file {cache}\n")
    monkeypatch.setattr(memory, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")
    found = available_bytes()
    assert found > 2**20 if expected is None else found == expected


def test_evaluation_is_the_same_in_smaller_batches_when_memory_is_short(left: Callable[[int], None]) -> None:
    module, data, sizes = network().eval(), samples(), list[int]()
    task = suggested_for(module, data)
    expected = evaluate(module, data, task)
    module.register_forward_pre_hook(lambda _module, inputs: sizes.append(len(inputs[0])))
    left(2**18)
    assert evaluate(module, data, task) == expected
    measured, used = sizes[:2], sizes[2:]
    assert measured == [1, 2]
    assert 1 < max(used) < sum(used) == 64
    left(100)
    with pytest.raises(EdgewrightError, match=r"evaluation on .*, one sample: needs about"):
        evaluate(module, data, task)


def model() -> Model:
    return from_module(network(), inputs=[VALUES], samples=samples(8))


def train() -> object:
    config = TrainingConfig(epochs=1, batch_size=32, optimizer="adamw")
    return fit(network(), lambda module, batch: module(*batch.inputs).sum(), samples(), config, seed=0, label="distill")


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(1000, 1000), nn.BatchNorm1d(1000), nn.Linear(1000, 2)).eval()


def judge(module: nn.Module, held_out: SampleSet) -> Judge:
    return Judge(module, held_out, suggested_for(module, held_out), (Budget(),), 16)


WEIGHTS = (1000 * 500 + 500 + 500 * 10 + 10) * 4
STEPS: dict[str, tuple[int, Callable[[], object]]] = {
    "distill: training in batches of 32": (3 * WEIGHTS, train),  # gradients and AdamW's two moments
    "quantize: calibration in batches of 64": (
        48 * 2000,
        lambda: calibrate(canonical_graph(model()), samples(), batch_size=64, methods=("minmax",)),
    ),
    "quantize: the weights of all candidates": (
        8 * WEIGHTS,
        lambda: quantize(model(), QuantizeConfig(), samples(), budget=Budget()),
    ),
    "quantize: outputs of 64 held-out samples": (64 * 39, lambda: judge(network(), samples())),
    "quantize: batch norms in batches of 16": (16 * 4000, lambda: reestimated(normed(), samples(16), batch_size=64)),
    "quantize: held-out samples, one sample": (3000, lambda: judge(normed(), samples(1))),
    "prune: importance, one sample": (
        1000,
        lambda: prune(model(), PruneConfig(macs_ratio=0.5, importance="taylor"), samples()),
    ),
    "benchmark, one sample": (1000, lambda: benchmark(model(), [], samples(), root=Path())),
}


@pytest.mark.parametrize("step", STEPS)
def test_step_is_refused_when_it_does_not_fit(step: str, left: Callable[[int], None]) -> None:
    nbytes, run = STEPS[step]
    left(nbytes)
    with pytest.raises(EdgewrightError, match=f"^{re.escape(step)}: needs about .* are available\n  fix: "):
        run()


def test_adaround_is_refused_when_the_positions_that_it_keeps_do_not_fit(left: Callable[[int], None]) -> None:
    calibration = calibrate(canonical_graph(model()), samples(), batch_size=64, methods=("minmax",))
    prepared = prepare(calibration, method="minmax", bias_correction="none")
    left(4 * 2048 * (500 + 10 + 1000) - 1)  # of both layers' outputs, and of the larger input
    with pytest.raises(
        EdgewrightError, match=r"^quantize: adaround: needs about .* are available\n  fix: remove adaround"
    ):
        round_adaptively(prepared, prepared, (torch.randn(4, 1000),), correct_biases=False)


def test_export_fails_one_target_with_the_figures_when_its_conversion_does_not_fit(
    left: Callable[[int], None], tmp_path: Path
) -> None:
    whole = model()
    left(6 * WEIGHTS - 1)
    (exported,) = export(whole, [OnnxTarget()], tmp_path)
    assert exported.status == "failed"
    assert exported.reason is not None
    assert re.match(r"^export to onnx: needs about .* are available\n  fix: ", exported.reason)


def test_training_reads_no_sample_before_its_first_step() -> None:
    data, reads = samples(8), list[int]()

    class Counting(Source):
        where, labelled, labels_where = data.source.where, True, "labels"

        def __len__(self) -> int:
            return len(data)

        def read(self, indices: Sequence[int]) -> tuple[tuple[Array, ...], Array | None]:
            reads.append(len(indices))
            return data.source.read(indices)

    config = TrainingConfig(epochs=1, batch_size=4)
    fit(network(), lambda module, batch: module(*batch.inputs).sum(), replace(data, source=Counting()), config, seed=0)
    assert reads == [4, 4]


def test_gradients_of_calibration_are_counted_when_a_range_method_needs_them(left: Callable[[int], None]) -> None:
    graph, data = canonical_graph(model()), samples(16)
    left(2**17)  # enough for the forward pass
    calibrate(graph, data, batch_size=16, methods=["minmax"])
    with pytest.raises(EdgewrightError, match=r"^quantize: gradients in batches of 16: needs about"):
        calibrate(graph, data, batch_size=16, methods=["output_mse"])


def test_checkpoint_is_refused_when_twice_its_size_does_not_fit(tmp_path: Path, left: Callable[[int], None]) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(network().state_dict(), file)
    left(2 * file.stat().st_size - 1)
    source = ModelSource(factory="torch.nn:Identity", checkpoint=file, inputs=(VALUES,))
    with pytest.raises(EdgewrightError, match=r"loading .*weights\.safetensors: needs about"):
        load(source)


@pytest.mark.slow
def test_steps_are_refused_that_would_fail_when_a_process_has_little_memory() -> None:
    """With 0.8 of what was measured for the batch, it does fail there, and half of it runs: the measure is right."""
    found = run_bounded(memory_calls.outcomes, memory_bytes=int(0.8 * memory_calls.needed().of(32))).value
    assert found["guarded 16"] == found["train 16"] == found["unguarded 16"] == "ran"
    assert "allocate memory" in found["unguarded 32"]
    for step in ("chain", "distill: training"):
        said = found["guarded 32" if step == "chain" else "train 32"]
        assert re.match(rf"{step} in batches of 32: needs about 1.* GiB of memory, and .* MiB are available", said)
        assert re.search(r"fix: set .*batch_size to (1[6-9]|2\d) or less", said)
