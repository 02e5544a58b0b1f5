from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import targets
from pipeline.core import StageError, TensorSpec
from pipeline.models.capture import capture, count_macs, count_parameters, example_inputs
from pipeline.models.load import from_module
from pipeline.models.structure import restore_module, save_module
from pipeline.recipe import PruneConfig
from pipeline.stages.prune import prune
from pipeline.stages.prune.channels import (
    Conv,
    coupled_channels,
    dependency_graph,
    remove,
    runnable,
    steps_of,
    traceable_copy,
)
from pipeline.stages.prune.importance import scorer
from pipeline.stages.prune.recurrent import Recurrent
from tests.networks.architectures import ARCHITECTURES as NETWORKS
from tests.networks.architectures import SEQUENCE, Architecture
from tests.networks.architectures import Recurrent as RecurrentNetwork
from tests.networks.prunable import ARCHITECTURES as TRANSFORMERS
from tests.networks.prunable import build
from tests.pipeline.stages.prune.halving import to_half

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", [name for name in TRANSFORMERS if name not in ("lstm", "gru")])
def test_prune_halves_the_network_which_still_runs_exports_and_restores_when_it_is(name: str, tmp_path: Path) -> None:
    module, inputs = build(name)
    after = prune(from_module(module, inputs), PruneConfig(macs_ratio=0.5))
    assert 0.3 * count_macs(module, inputs) < after.history[-1].macs <= 0.5 * count_macs(module, inputs)
    examples = example_inputs(inputs, 2)
    with torch.no_grad():
        expected = after.module(*examples)
        assert expected.shape == module(*examples).shape
        assert expected.isfinite().all()
        exported = capture(after.module, inputs).module()
        torch.testing.assert_close(exported(*examples), expected, rtol=1e-4, atol=1e-5)
        save_module(after.module, tmp_path / "module.safetensors")
        assert torch.equal(restore_module(build(name)[0], tmp_path / "module.safetensors")(*examples), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_prune_halves_the_network_which_restores_and_runs_in_onnxruntime_when_it_is(name: str, tmp_path: Path) -> None:
    before, samples = NETWORKS[name].model(), NETWORKS[name].samples(16)
    after = prune(before, to_half(name), samples)
    assert after.history[-1].macs <= 0.5 * count_macs(before.module, before.inputs)
    assert after.history[-1].parameters < 0.75 * count_parameters(before.module)
    (batch,) = samples.take(1).batches(1)
    with torch.no_grad():
        outputs = after.module(*batch.inputs)
        assert as_tuple(outputs)[0].isfinite().all()
        save_module(after.module, tmp_path / "module.safetensors")
        restored = restore_module(NETWORKS[name].model(seed=1).module, tmp_path / "module.safetensors")
        weights = after.module.state_dict()
        assert all(torch.equal(weights[key], tensor) for key, tensor in restored.state_dict().items())
        torch.testing.assert_close(restored(*batch.inputs), outputs)  # equal weights, but of another memory layout
    onnx = targets.get("onnx")
    session = onnx.load(onnx.lower(after, tmp_path, name="pruned"), threads=1)
    found = session.run(tuple(tensor.numpy() for tensor in batch.inputs))
    for ours, theirs in zip(as_tuple(outputs), found, strict=True):
        torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-3, atol=1e-4)


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def masked(module: nn.Module, inputs: tuple[TensorSpec, ...], removed: dict[str, list[int]]) -> None:
    """Make the consumers of removed channels read zeros instead; the producers keep their size."""
    graph = dependency_graph(traceable_copy(module), inputs)
    names = {part: name for name, part in graph.model.named_modules()}
    for layer, channels in removed.items():
        part = graph.model.get_submodule(layer)
        group = graph.get_pruning_group(part, graph.get_pruner_of_module(part).prune_out_channels, channels)
        for dep, indices in group:
            if dep.target.module not in names:
                continue
            touched = module.get_submodule(names[dep.target.module])
            widens = graph.is_out_channel_pruning_fn(dep.handler)
            if widens and isinstance(touched, Recurrent):
                forget(touched, indices)
            elif not widens and isinstance(touched, Conv | nn.Linear | Recurrent):
                touched.register_forward_pre_hook(_silence(indices, 1 if isinstance(touched, Conv) else -1))


@torch.no_grad()
def forget(layer: nn.Module, channels: list[int]) -> None:
    """Let no gate of a recurrent layer, and no layer above, read these hidden units of either direction."""
    units = [channel for channel in channels if channel < layer.hidden_size]
    directions = 2 if layer.bidirectional else 1
    for name, weight in layer.named_parameters():
        if name.startswith("weight_hh"):
            weight[:, units] = 0
        elif name.startswith("weight_ih") and not name.startswith("weight_ih_l0"):
            for direction in range(directions):
                weight[:, [unit + direction * layer.hidden_size for unit in units]] = 0


def _silence(channels: list[int], axis: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (inputs[0].index_fill(axis, torch.tensor(channels), 0.0),)

    return hook


@pytest.mark.parametrize(
    "name", ["resnet", "mobilenet_v2", "efficientnet", "densenet", "unet", "vit", "bert", "distilbert", "lstm", "gru"]
)
def test_remove_equals_the_masked_transformers_network_when_no_norm_mixes_the_channels(name: str) -> None:
    module, inputs = build(name)
    assert_equals_the_masked_network(module, inputs, example_inputs(inputs, 2))


@pytest.mark.parametrize("name", [*NETWORKS, "bilstm of 2 layers", "gru of 2 layers"])
def test_remove_equals_the_masked_network_when_no_norm_mixes_the_channels(name: str) -> None:
    network = NETWORKS[name] if name in NETWORKS else STACKED[name]
    (batch,) = network.samples(2).batches(2)
    assert_equals_the_masked_network(network.model().module, network.inputs, batch.inputs)


STACKED = {
    name: Architecture(name, factory, SEQUENCE)
    for name, factory in (
        ("bilstm of 2 layers", lambda: RecurrentNetwork(nn.LSTM, 2, True)),
        ("gru of 2 layers", lambda: RecurrentNetwork(nn.GRU, 2, False)),
    )
}


def assert_equals_the_masked_network(
    module: nn.Module, inputs: tuple[TensorSpec, ...], examples: tuple[Tensor, ...]
) -> None:
    judged = traceable_copy(module)
    groups, _ = coupled_channels(judged, inputs, scorer("l2", judged, None), round_to=8, max_layer_ratio=0.9)
    groups, _ = runnable(module, inputs, groups, 0.9)
    exact = [group for group in groups if not _mixed_by_a_norm(module, inputs, group.layer)]
    assert exact
    steps = [steps_of(group, 0.9)[0] for group in exact]
    pruned = remove(module, inputs, steps)
    masked(module, inputs, {step.group.layer: list(step.channels) for step in steps})
    with torch.no_grad():
        torch.testing.assert_close(pruned(*examples), module(*examples), rtol=1e-4, atol=1e-5)


def test_count_macs_equals_the_hand_count_when_the_network_is_an_lstm_of_two_layers() -> None:
    steps, gates, hidden = 6, 4, 16
    layers = [gates * hidden * (8 + hidden), gates * hidden * (hidden + hidden)]
    network = NETWORKS["lstm"]
    assert count_macs(network.model().module, network.inputs) == steps * sum(layers) + hidden * 5


def test_prune_leaves_a_recurrent_layer_whole_when_its_state_is_projected() -> None:
    network = RecurrentNetwork(lambda *args, **kwargs: nn.LSTM(args[0], 32, proj_size=16, **kwargs), 1, False)
    with pytest.raises(StageError, match=r"cell: its hidden state is projected \(proj_size\)"):
        prune(from_module(network.eval(), SEQUENCE), PruneConfig(parameters_ratio=0.5))


def _mixed_by_a_norm(module: nn.Module, inputs: tuple[TensorSpec, ...], layer: str) -> bool:
    """Whether a layer or group norm reads these channels: its mean is over all, so the rest changes too."""
    graph = dependency_graph(traceable_copy(module), inputs)
    part = graph.model.get_submodule(layer)
    group = graph.get_pruning_group(part, graph.get_pruner_of_module(part).prune_out_channels, [0])
    return any(isinstance(dep.target.module, nn.LayerNorm | nn.GroupNorm) for dep, _ in group)
