"""Calibration: what it keeps, what it costs, and the simulation of the program it makes."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from functools import partial

import psutil
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from pipeline.core import TensorSpec
from pipeline.data.samples import Batch
from pipeline.stages.quantize.graph.canonical import canonical_graph
from pipeline.stages.quantize.graph.cost import integer_share
from pipeline.stages.quantize.ranges.calibration import BATCH, calibrate, fitting_batch
from pipeline.stages.quantize.ranges.methods import METHODS
from pipeline.stages.quantize.simulation import Simulation, convert
from pipeline.tasks.comparison import sqnr_db
from tests.networks.architectures import ARCHITECTURES, Architecture, Bert, conv_bn


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v3", "vit", "two_in_two_out"])
def test_simulation_gives_what_the_program_gives(name: str) -> None:
    architecture = ARCHITECTURES[name]
    found = calibrate(canonical_graph(architecture.model()), architecture.samples(32), batch_size=32)
    (batch,) = architecture.samples(32, seed=3).batches(32)
    simulation = Simulation(found)
    with torch.no_grad():
        ours = _all(simulation.configure("mse", "empirical")(*batch.inputs))
        theirs = _all(convert(simulation.graph)(*batch.inputs))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0)


@pytest.mark.slow
def test_configuring_again_starts_afresh() -> None:
    architecture = ARCHITECTURES["resnet"]
    found = calibrate(canonical_graph(architecture.model()), architecture.samples(16), batch_size=16)
    (batch,) = architecture.samples(8, seed=3).batches(8)
    used, fresh = Simulation(found), Simulation(found)
    used.configure("mse", "empirical", adaround=True)
    with torch.no_grad():
        first = fresh.configure("minmax", "analytic")(*batch.inputs)
        again = used.configure("minmax", "analytic")(*batch.inputs)
    torch.testing.assert_close(again, first, rtol=0, atol=0)


def test_batch_is_as_large_as_its_largest_activation_allows() -> None:
    architecture = ARCHITECTURES["unet"]  # (N, 48, 16, 16) and (N, 36, 32, 32): 36,864 elements per sample
    graph = canonical_graph(architecture.model())
    assert fitting_batch(graph, 64, elements=10 * 36_864 + 5) == 10
    assert fitting_batch(graph, 4, elements=10 * 36_864) == 4
    assert fitting_batch(graph, 64, elements=5) == 1


class Lengths:
    """Random tokens, sixteen sequences each of 4, 8, 12 and 16."""

    def __init__(self, lengths: tuple[int, ...] = (4, 8, 12, 16)) -> None:
        self._lengths = lengths

    def __len__(self) -> int:
        return 16 * len(self._lengths)

    def batches(self, _: int) -> Iterator[Batch]:
        for length in self._lengths:
            generator = torch.Generator().manual_seed(100 + length)
            yield Batch((torch.randint(0, 64, (16, length), generator=generator),), None)

    def take(self, _: int) -> Lengths:
        return Lengths(self._lengths[-1:])


@pytest.mark.slow
def test_int8_follows_at_every_length_when_the_sequence_is_dynamic() -> None:
    architecture = ARCHITECTURES["bert"]
    model = architecture.model()
    tokens = torch.zeros(2, 12, dtype=torch.int64)
    program = export(model.module, (tokens,), dynamic_shapes=({0: Dim.AUTO, 1: Dim("length", min=4, max=16)},))
    graph = canonical_graph(model, program)
    found = calibrate(graph, Lengths(), batch_size=16)  # type: ignore[arg-type]  # all that calibration asks of samples
    int8 = convert(Simulation(found).configure("minmax", "analytic"))
    assert integer_share(int8, architecture.inputs) == 1.0
    for length in (5, 9, 16):
        x = torch.randint(0, 64, (32, length), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            assert sqnr_db(model.module(x), int8(x)) > 24


class MaskedBert(Bert):
    """Padding tokens (id 0) are masked, and no token sees a later one."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.words(tokens) + self.positions(torch.arange(tokens.shape[1])))
        keep = (tokens != 0)[:, None, None, :] | torch.eye(tokens.shape[1], dtype=torch.bool)
        for block in self.blocks:
            y = block.norm1(x)
            batch, length, width = y.shape
            heads = block.attention.heads
            q, k, v = block.attention.qkv(y).reshape(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=keep)
            x = x + block.attention.out(y.transpose(1, 2).reshape(batch, length, width))
            x = x + block.mlp(block.norm2(x))
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


def test_masked_attention_runs_on_integers() -> None:
    net = Architecture("masked", MaskedBert, ARCHITECTURES["bert"].inputs)
    model = net.model()
    found = calibrate(canonical_graph(model), net.samples(64), batch_size=32)
    program = convert(Simulation(found).configure("minmax", "empirical"))
    assert integer_share(program, net.inputs) == 1.0
    assert {entry.reason for entry in found.scheme.skipped} == {
        "a masked score is too small for any integer grid: softmax reads it in float"
    }
    (batch,) = net.samples(64, seed=5).batches(64)
    with torch.no_grad():
        assert sqnr_db(model.module(*batch.inputs), program(*batch.inputs)) > 24


def _all(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else torch.cat([output.flatten() for output in outputs])


@pytest.mark.slow
def test_memory_does_not_grow_when_there_are_more_samples() -> None:
    """Peak resident memory of 4,096 samples against that of 256, each 48 kB: all of them would take 200 MB."""

    def wide() -> nn.Module:
        return nn.Sequential(conv_bn(3, 8, 3, 4, act=nn.ReLU()), nn.Flatten(), nn.Linear(2048, 4))

    net = Architecture("wide", wide, (TensorSpec(name="image", shape=(3, 64, 64)),))
    graph = canonical_graph(net.model())
    methods = tuple(METHODS)

    def run(count: int) -> object:
        return calibrate(graph, net.samples(count), batch_size=32, methods=methods)

    run(2 * BATCH)
    few, many = (_peak_bytes(partial(run, count)) for count in (256, 4096))
    assert many - few < 20e6


def _peak_bytes(run: object) -> int:
    """Peak resident memory while a function runs, sampled every few milliseconds."""
    gc.collect()
    process, peak, done = psutil.Process(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.005)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        run()  # type: ignore[operator]
    finally:
        done.set()
        watching.join()
    return peak
