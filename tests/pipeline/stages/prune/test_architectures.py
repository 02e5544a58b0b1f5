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
from pipeline.stages.prune.channels import coupled_channels, remove, steps_of, traceable_copy
from pipeline.stages.prune.guard import Guard
from pipeline.stages.prune.importance import scorer
from tests.networks.architectures import ARCHITECTURES as NETWORKS
from tests.networks.architectures import SEQUENCE, Architecture
from tests.networks.architectures import Recurrent as RecurrentNetwork
from tests.networks.prunable import ARCHITECTURES as TRANSFORMERS
from tests.networks.prunable import build
from tests.pipeline.stages.prune.halving import to_half
from tests.pipeline.stages.prune.zeroed import make_values_unique, zeroed

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


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_remove_equals_the_original_with_the_removed_weights_at_zero_when_transformers_built_it(name: str) -> None:
    module, inputs = build(name)
    assert_equals_the_zeroed_original(module, inputs, example_inputs(inputs, 2))


@pytest.mark.parametrize("name", [*NETWORKS, "bilstm of 2 layers", "gru of 2 layers"])
def test_remove_equals_the_original_with_the_removed_weights_at_zero(name: str) -> None:
    network = NETWORKS[name] if name in NETWORKS else STACKED[name]
    (batch,) = network.samples(2).batches(2)
    assert_equals_the_zeroed_original(network.model().module, network.inputs, batch.inputs)


STACKED = {
    name: Architecture(name, factory, SEQUENCE)
    for name, factory in (
        ("bilstm of 2 layers", lambda: RecurrentNetwork(nn.LSTM, 2, True)),
        ("gru of 2 layers", lambda: RecurrentNetwork(nn.GRU, 2, False)),
    )
}


def assert_equals_the_zeroed_original(
    module: nn.Module, inputs: tuple[TensorSpec, ...], examples: tuple[Tensor, ...]
) -> None:
    """One step of every group, all at once."""
    make_values_unique(module)
    judged = traceable_copy(module)
    groups, _ = coupled_channels(judged, inputs, scorer("l2", judged, None, None), round_to=8, max_layer_ratio=0.9)
    groups, _ = Guard(module, inputs).verified(groups, 0.9)
    assert groups
    pruned = remove(module, [steps_of(group, 0.9)[0] for group in groups])
    with torch.no_grad():
        torch.testing.assert_close(pruned(*examples), zeroed(module, pruned)(*examples), rtol=1e-4, atol=1e-5)


def test_count_macs_equals_the_hand_count_when_the_network_is_an_lstm_of_two_layers() -> None:
    steps, gates, hidden = 6, 4, 16
    layers = [gates * hidden * (8 + hidden), gates * hidden * (hidden + hidden)]
    network = NETWORKS["lstm"]
    assert count_macs(network.model().module, network.inputs) == steps * sum(layers) + hidden * 5


def test_prune_leaves_a_recurrent_layer_whole_when_its_state_is_projected() -> None:
    network = RecurrentNetwork(lambda *args, **kwargs: nn.LSTM(args[0], 32, proj_size=16, **kwargs), 1, False)
    with pytest.raises(StageError, match=r"cell: its hidden state is projected \(proj_size\)"):
        prune(from_module(network.eval(), SEQUENCE), PruneConfig(parameters_ratio=0.5))
