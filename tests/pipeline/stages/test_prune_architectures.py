from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipeline.checkpoint import from_module
from pipeline.core import StageError, TensorSpec
from pipeline.program import capture, count_macs, count_parameters, example_inputs
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
from pipeline.structure import restore_module, save_module
from tests.architectures import ARCHITECTURES, build

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in ("lstm", "gru")])
def test_prune_halves_the_network_which_still_runs_exports_and_restores_when_it_is(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    module, inputs = build(name)
    before = from_module(module, inputs)
    after = prune(before, PruneConfig(macs_ratio=0.5))
    record = after.history[-1]
    assert 0.3 * count_macs(module, inputs) < record.macs <= 0.5 * count_macs(module, inputs)
    examples = example_inputs(inputs, 2)
    with torch.no_grad():
        expected = after.module(*examples)
        assert expected.shape == module(*examples).shape
        assert expected.isfinite().all()
        exported = capture(after.module, inputs).module()
        torch.testing.assert_close(exported(*examples), expected, rtol=1e-4, atol=1e-5)
        path = tmp_path_factory.mktemp(name) / "module.safetensors"
        save_module(after.module, path)
        assert torch.equal(restore_module(build(name)[0], path)(*examples), expected)
    print(f"{name}: MACs x{record.macs / count_macs(module, inputs):.2f}, ", end="")
    print(f"parameters x{record.parameters / count_parameters(module):.2f}")
    for skipped in record.skipped:
        print(f"  {skipped.layer}: {skipped.reason}")


def test_prune_narrows_the_input_of_an_lstm_and_says_why_its_hidden_size_stays() -> None:
    before = from_module(*build("lstm"))
    after = prune(before, PruneConfig(parameters_ratio=0.8))
    assert after.module.recurrent.input_size == after.module.embed.out_features < 64
    assert after.module.recurrent.hidden_size == 64
    reasons = {skipped.layer: skipped.reason for skipped in after.history[-1].skipped}
    assert reasons["recurrent"].startswith("without some of its channels the model does not run")


def test_prune_says_why_nothing_can_go_when_the_dependency_graph_cannot_follow_a_gru() -> None:
    with pytest.raises(StageError, match="embed: the dependency graph cannot follow its channels"):
        prune(from_module(*build("gru")), PruneConfig(parameters_ratio=0.95))


def masked(module: nn.Module, inputs: tuple[TensorSpec, ...], removed: dict[str, list[int]]) -> None:
    """Make the consumers of removed channels read zeros instead; the producers keep their size."""
    graph = dependency_graph(traceable_copy(module), inputs)
    names = {part: name for name, part in graph.model.named_modules()}
    for layer, channels in removed.items():
        part = graph.model.get_submodule(layer)
        group = graph.get_pruning_group(part, graph.get_pruner_of_module(part).prune_out_channels, channels)
        for dep, indices in group:
            if dep.target.module in names and graph.is_in_channel_pruning_fn(dep.handler):
                consumer = module.get_submodule(names[dep.target.module])
                if isinstance(consumer, Conv | nn.Linear) and not graph.is_out_channel_pruning_fn(dep.handler):
                    consumer.register_forward_pre_hook(_silence(indices, 1 if isinstance(consumer, Conv) else -1))


def _silence(channels: list[int], axis: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (inputs[0].index_fill(axis, torch.tensor(channels), 0.0),)

    return hook


@pytest.mark.parametrize(
    "name", ["resnet", "mobilenet_v2", "efficientnet", "densenet", "unet", "vit", "bert", "distilbert"]
)
def test_remove_equals_the_masked_network_when_no_norm_mixes_the_channels(name: str) -> None:
    module, inputs = build(name)
    judged = traceable_copy(module)
    groups, _ = coupled_channels(judged, inputs, scorer("l2", judged, None), round_to=8, max_layer_ratio=0.9)
    groups, _ = runnable(module, inputs, groups, 0.9)
    exact = [group for group in groups if not _mixed_by_a_norm(module, inputs, group.layer)]
    assert exact
    steps = [steps_of(group, 0.9)[0] for group in exact]
    pruned = remove(module, inputs, steps)
    masked(module, inputs, {step.group.layer: list(step.channels) for step in steps})
    examples = example_inputs(inputs, 2)
    with torch.no_grad():
        torch.testing.assert_close(pruned(*examples), module(*examples), rtol=1e-4, atol=1e-5)


def _mixed_by_a_norm(module: nn.Module, inputs: tuple[TensorSpec, ...], layer: str) -> bool:
    """Whether a layer or group norm reads these channels: its mean is over all, so the rest changes too."""
    graph = dependency_graph(traceable_copy(module), inputs)
    part = graph.model.get_submodule(layer)
    group = graph.get_pruning_group(part, graph.get_pruner_of_module(part).prune_out_channels, [0])
    return any(isinstance(dep.target.module, nn.LayerNorm | nn.GroupNorm) for dep, _ in group)
