"""The fuzzer itself: its networks, its measures, and that each oracle finds a fault that is put in."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn

from pipeline import Model, TensorSpec
from pipeline.core import EdgewrightError, StageError
from pipeline.core.bounded import ChildError
from pipeline.models.capture import count_macs
from pipeline.target import Exported, Lowered
from tests.fuzz import graph_oracles, prune_oracle, subject, target_oracles
from tests.fuzz.blocks.catalogue import features
from tests.fuzz.campaign import Campaign, essentials
from tests.fuzz.findings import Finding, of_exception, of_refusal
from tests.fuzz.known_faults import KnownFault
from tests.fuzz.measure import differences, rounded_plainly
from tests.fuzz.mutations import Mutation, search, shared_weights
from tests.fuzz.networks import build
from tests.fuzz.novelty import Novelty
from tests.fuzz.reduce import Reduction
from tests.fuzz.shortcuts import run_forked
from tests.fuzz.spec import Block, Network
from tests.fuzz.strategies import networks
from tests.fuzz.subject import Subject, outputs_of
from tests.fuzz.uniform import for_each
from tests.fuzz.worker import Examined, Worker
from tests.pipeline.stages.prune.zeroed import Unverified, zeroed

SMALL = Network(("image",), (Block("conv_bn_act", (0,)), Block("global_pool", (1,)), Block("linear", (2,))), (3,))


def subject_of(network: Network, folder: Path) -> Subject:
    return Subject(build(network), folder, announce=lambda stage: None)  # noqa: ARG005


def outcomes(findings: Any) -> list[tuple[str, str]]:
    return [(finding.outcome, finding.cause) for finding in findings]


@settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(networks())
def test_network_is_the_same_when_built_from_its_text(network: Network) -> None:
    again = Network.from_text(network.text())
    assert again == network
    one, two = build(network), build(again)
    for a, b in zip(outputs_of(one.module, one.samples), outputs_of(two.module, two.samples), strict=True):
        assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def test_networks_of_a_seed_are_known_by_their_number() -> None:
    some: list[str] = []
    for_each(networks(), lambda network: some.append(network.text()), seed=7, count=6)
    assert len(set(some)) == 6
    later: list[str] = []
    for_each(networks(), lambda network: later.append(network.text()), seed=7, first=4, count=2)
    assert later == some[4:]


def test_drawn_networks_lack_what_is_known_to_fail() -> None:
    fault = KnownFault(("conv2d(padding=same)",), ("graph",), "padding in words stays in float")
    assert fault.is_in(Network(("image",), (Block("conv2d", (0,), {"padding": "same"}),), (1,)))
    assert not fault.is_in(Network(("image",), (Block("conv2d", (0,)),), (1,)))
    everything = KnownFault(("act",), ("graph",), "no activations")
    drawn: list[Network] = []
    for_each(networks([everything]), drawn.append, seed=1, count=40)
    assert len(drawn) == 40
    assert not any("act" in features(network) for network in drawn)


def test_the_rarest_of_several_networks_is_chosen() -> None:
    def pool(**options: object) -> Network:
        return Network(("image",), (Block("avg_pool2d", (0,), dict(options)),), (1,))

    offered = [pool(), pool(), pool(), pool(ceil_mode=True), pool(ceil_mode=True, padding=1), pool(ceil_mode=True)]
    novelty = Novelty(candidates=2)
    chosen = [novelty.offer(number, network) for number, network in enumerate(offered)]
    assert chosen == [None, (0, offered[0]), None, (3, offered[3]), None, (4, offered[4])]


@pytest.mark.slow
def test_a_fault_that_is_put_back_is_found() -> None:
    found = search(Mutation(shared_weights, ("load", "canonical"), minutes=2, candidates=8), seed=1)
    assert found.found is not None, found
    assert found.found[1].oracle == "canonical"


def test_unread_blocks_and_inputs_leave_a_network() -> None:
    blocks = (Block("act", (1,)), Block("linear", (0,)), Block("act", (3,)), Block("softmax", (3,)))
    network = Network(("vector", "state"), blocks, (4,))
    assert network.without_unread() == Network(("vector",), (Block("linear", (0,)), Block("act", (1,))), (2,))


def test_differences_name_what_is_wrong() -> None:
    good = np.array([3.0, 4.0], np.float32)
    assert differences([good], [good.copy()], [np.inf]) == []
    cases = {
        "shape": good[:1],
        "dtype": good.astype(np.float64),
        "finite": np.array([3.0, np.nan], np.float32),
        "dB": np.array([3.0, 3.5], np.float32),  # 25 / 0.25: 20 dB
    }
    assert {name: [d.what for d in differences([good], [bad], [20.1])] for name, bad in cases.items()} == {
        name: [name] for name in cases
    }
    assert differences([good], [cases["dB"]], [19.9]) == []
    assert [d.what for d in differences([good, good], [good], [0, 0])] == ["count"]


def test_plain_rounding_puts_values_on_256_levels() -> None:
    graph = torch.fx.symbolic_trace(nn.Identity())
    x = torch.linspace(0, 1, 1001)
    (rounded,) = rounded_plainly(graph, [x])
    assert len(np.unique(rounded)) == 256
    assert abs(rounded - x.numpy()).max() <= 0.5 / 255 + 1e-6
    (kept,) = rounded_plainly(graph, [x], zeros=False)
    assert kept.tolist() == np.where(rounded == 0, x.numpy(), rounded).tolist()
    assert (kept[1:] > 0).all()


def test_canonical_oracle_finds_a_changed_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcomes(graph_oracles.canonical(subject_of(SMALL, tmp_path))) == [("right", "")]
    real = subject.canonical_graph

    def wrong(model: Model, **samples: Any) -> torch.fx.GraphModule:
        graph = real(model, **samples)
        with torch.no_grad():
            next(p for p in graph.parameters() if p.ndim == 4)[0, 0, 0, 0] += 1e-3
        return graph

    monkeypatch.setattr(subject, "canonical_graph", wrong)
    assert outcomes(graph_oracles.canonical(subject_of(SMALL, tmp_path))) == [("wrong", "dB")]


def test_program_oracle_finds_a_coarse_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcomes(graph_oracles.program(subject_of(SMALL, tmp_path))) == [("right", "")]
    real = subject.quantize

    def coarse(model: Model, *args: Any, **settings: Any) -> Model:
        made = real(model, *args, **settings)
        return replace(made, module=nn.Sequential(made.module, Coarse()))

    monkeypatch.setattr(subject, "quantize", coarse)
    assert outcomes(graph_oracles.program(subject_of(SMALL, tmp_path))) == [("wrong", "dB")]


def test_program_oracle_asks_no_more_than_rounding_allows_where_a_divisor_becomes_zero(tmp_path: Path) -> None:
    apart = Block("wide_range", (1,), {"form": "channels_apart"})  # 8 dB unless channels are equalised
    network = Network(("odd_image",), (Block("layer_norm_2d", (0,)), apart), (2,))
    assert outcomes(graph_oracles.program(subject_of(network, tmp_path))) == [("right", "")]


class Coarse(nn.Module):
    """Rounds to eight levels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        step = (x.max() - x.min()) / 7
        return (x / step).round() * step


def test_target_oracle_reads_the_file_and_not_the_product(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The FP32 file in place of the INT8 one, and one of other weights in place of the FP32 one."""
    asked = subject_of(SMALL, tmp_path)
    right = list(target_oracles.files_of("onnx")(asked))
    assert [(f.oracle, f.outcome) for f in right] == [
        ("onnx int8, onnxruntime", "right"),
        ("onnx fp32, onnxruntime", "right"),
    ]
    other = subject_of(replace(SMALL, seed=5), tmp_path / "other")
    monkeypatch.setattr(Subject, "exported", lambda self, target: _swapped(self, target, other))
    assert outcomes(target_oracles.files_of("onnx")(asked)) == [("wrong", "dB"), ("wrong", "dB")]


def _swapped(asked: Subject, target: str, other: Subject) -> Exported:
    import targets
    from pipeline import export

    made = export(other.program, [targets.get(target)], asked.folder)[0]
    assert isinstance(made.original, Lowered)
    return made


def test_pruning_oracle_finds_channels_taken_from_the_wrong_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = (Block("conv2d", (0,)), Block("act", (1,)), Block("conv2d", (2,)), Block("global_pool", (3,)))
    network = Network(("image",), blocks, (4,))
    assert outcomes(prune_oracle.pruning(subject_of(network, tmp_path))) == [("right", "")]
    real = prune_oracle.prune

    def wrong(*args: Any) -> Model:
        made = real(*args)
        conv = made.module.blocks[2]
        assert conv.in_channels < 8
        conv.weight.data = conv.weight.data.roll(1, 1)  # each channel is read by the weights of its neighbour
        return made

    monkeypatch.setattr(prune_oracle, "prune", wrong)
    assert outcomes(prune_oracle.pruning(subject_of(network, tmp_path))) == [("wrong", "dB")]


def test_original_with_removed_weights_at_zero_computes_what_is_left() -> None:
    torch.manual_seed(0)
    original = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    nn.init.uniform_(original[1].weight)
    nn.init.uniform_(original[1].bias)
    kept = [0, 2, 3]
    pruned = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    with torch.no_grad():
        pruned[0].weight.copy_(original[0].weight[kept])
        pruned[0].bias.copy_(original[0].bias[kept])
        pruned[1].weight.copy_(original[1].weight[kept])
        pruned[1].bias.copy_(original[1].bias[kept])
        pruned[2].weight.copy_(original[2].weight[:, kept])
        pruned[2].bias.copy_(original[2].bias)
    x = torch.randn(5, 3)
    held = zeroed(original, pruned)
    assert torch.allclose(held(x), pruned(x), atol=1e-6)
    assert not torch.allclose(held(x), original(x), atol=1e-2)
    twins = copy.deepcopy(original)
    with torch.no_grad():
        twins[2].weight[:, 1] = twins[2].weight[:, 0]
        pruned[2].weight.copy_(twins[2].weight[:, kept])
    with pytest.raises(Unverified, match="not unique"):
        zeroed(twins, pruned)


def test_a_refusal_needs_a_reason() -> None:
    reason = "no integer kernel for aten.sort.default: leave it out of the network"
    assert of_refusal("onnx", reason).outcome == "refused"
    assert (
        of_refusal("coreml", "coremltools cannot convert it: 'NoneType' object is not iterable").outcome == "no reason"
    )
    assert of_refusal("onnx", "").outcome == "no reason"
    assert of_exception("load", StageError("a module that changes a buffer", where="x")).outcome == "refused"
    with pytest.raises(RuntimeError) as raised:
        count_macs(nn.Linear(3, 2), (TensorSpec(name="x", shape=(4,)),))
    found = of_exception("load", raised.value)
    assert (found.outcome, found.cause) == ("traceback", "RuntimeError in capture.py:count_macs")
    with pytest.raises(ValueError, match="zip"):  # the fuzzer's own
        of_exception("load", _error_of(lambda: differences([], [np.zeros(1)][:0], [1.0])))


def _error_of(call: Callable[[], Any]) -> Exception:
    with pytest.raises(ValueError) as raised:  # noqa: PT011  # which one is up to the caller
        call()
    return raised.value


def dies(connection: Connection, log: str) -> None:
    """A child that says so and aborts."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    connection.recv()
    connection.send(("finding", Finding("load", "right")))
    connection.send(("stage", "quantize"))
    os.write(descriptor, b"Fatal: out of luck\n")
    os.abort()


def spins(connection: Connection, log: str) -> None:  # noqa: ARG001
    """A child that never comes back."""
    connection.recv()
    connection.send(("stage", "run tflite int8, XNNPACK"))
    while True:
        pass


def sleeps(connection: Connection, log: str) -> None:  # noqa: ARG001
    """A child that waits for ever."""
    connection.recv()
    connection.send(("stage", "prune"))
    time.sleep(1000)


def test_an_abort_costs_one_network() -> None:
    worker = Worker(serve=dies)
    found = worker.examine(SMALL, ("load",)).findings
    assert [(f.oracle, f.outcome, f.cause) for f in found] == [
        ("load", "right", ""),
        ("program", "abort", "in quantize"),
    ]
    assert "exit code -6: Fatal: out of luck" in found[-1].detail
    assert len(worker.examine(SMALL, ("load",)).findings) == 2  # by the next child
    worker.close()


@pytest.mark.parametrize(("serve", "oracle"), [(spins, "tflite int8, XNNPACK"), (sleeps, "prune")])
def test_a_stage_that_does_not_end_is_a_hang(serve: Any, oracle: str) -> None:
    worker = Worker(serve=serve, stage_seconds=0.2)
    (found,) = worker.examine(SMALL, ("load",)).findings
    assert (found.oracle, found.outcome) == (oracle, "hang")
    worker.close()


class Answering(Worker):
    """Fails every network that has a sigmoid after a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def examine(self, network: Network, oracles: Any) -> Examined:  # noqa: ARG002
        self.asked += 1
        linear = {len(network.inputs) + i for i, block in enumerate(network.blocks) if block.kind == "linear"}
        fails = any(b.options.get("name") == "sigmoid" and set(b.reads) & linear for b in network.blocks)
        found = Finding("canonical", "wrong", "dB", "12 dB") if fails else Finding("canonical", "right")
        return Examined((found,), ("aten.linear.default",), 0.1)


LARGE = Network(
    ("image", "vector"),
    (
        Block("conv2d", (0,), {"out": 4}),
        Block("global_pool", (2,), {"form": "max"}),
        Block("linear", (3,), {"out": 12, "act": "gelu"}),
        Block("act", (4,), {"name": "sigmoid", "form": "function"}),
        Block("two_vectors", (5, 1)),
        Block("math", (6,)),
    ),
    (7, 5),
    returns="list",
    names="spaces",
    settings="strict",
    seed=99,
)


def test_a_failing_network_is_cut_down() -> None:
    smallest, (found,) = Reduction(Finding("canonical", "wrong", "dB"), Answering(), 200).of(LARGE)
    linear, sigmoid = Block("linear", (1,)), Block("act", (2,), {"name": "sigmoid"})
    assert smallest == Network(("image",), (Block("global_pool", (0,)), linear, sigmoid), (3,))
    assert found.detail == "12 dB"


def test_a_campaign_groups_failures_and_goes_on() -> None:
    campaign = Campaign(seed=0, group="graph", reduce=200, say=lambda text: None)  # noqa: ARG005
    worker = Answering()
    for number, network in enumerate((SMALL, LARGE, replace(LARGE, seed=3), SMALL)):
        campaign._examine(network, number, worker)
    assert campaign.outcomes == {"right": 2, "wrong": 2}
    (kind,) = campaign.kinds
    assert (kind.seen, kind.index) == (2, 1)
    assert essentials(kind.smallest) == {"global_pool": 1, "linear": 1, "act": 1, "act(name=sigmoid)": 1}
    assert campaign.operators == {"aten.linear.default": 4}
    assert campaign.to_json()["failures"][0]["network"] == kind.smallest.text()
    assert kind.smallest.text() in campaign.report()


def _refuse(_: object) -> None:
    raise StageError("no", where="layer", fix="another")


def test_a_forked_call_answers_refuses_and_crashes_as_a_bounded_one() -> None:
    assert run_forked(divmod, 7, 2).value == (3, 1)
    with pytest.raises(EdgewrightError, match=r"layer: no\n  fix: another"):
        run_forked(_refuse, 1)
    with pytest.raises(ChildError, match="ZeroDivisionError") as failed:
        run_forked(divmod, 7, 0)
    assert failed.value.reason == "exception"
    with pytest.raises(ChildError, match="killed by signal 6") as crashed:
        run_forked(os.abort)
    assert crashed.value.reason == "signal"
