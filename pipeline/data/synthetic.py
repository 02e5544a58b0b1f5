"""Inputs for calibration where there is no real sample: such that batch norms see the statistics of their training.

A batch norm keeps the mean and the variance of what it was trained on. Inputs are optimised until they give each batch
norm the same (Cai et al. 2020, ZeroQ, https://arxiv.org/abs/2001.00281). They start as smooth random images in the
range that preprocessing is meant for; where a model has no batch norms, they remain such.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.core import DataError, Preprocessing, TensorSpec
from pipeline.core.arrays import Array
from pipeline.data.preprocessing import normalise
from pipeline.data.samples import SampleSet, Source
from pipeline.progress import Progress

COUNT = 64
"""Samples, unless the recipe limits them."""
AT_ONCE = 16
STEPS = 40
LEARNING_RATE = 0.1
COARSEST = 2
"""Pixels of the smoothest part of a random image."""


class Layer(NamedTuple):
    """What reaches a batch norm ``(N, C, …)``, and the mean and variance of its training ``(C,)``."""

    value: Tensor
    mean: Tensor
    variance: Tensor


class SyntheticSource(Source):
    """Model inputs that were made, ready for the model.

    Attributes:
        layers: How many batch norms say what they are like.
    """

    def __init__(self, inputs: Sequence[Tensor], layers: int) -> None:
        self.where = self.labels_where = "synthetic inputs"
        self.labelled, self.layers = False, layers
        self._inputs = tuple(tensor.numpy() for tensor in inputs)

    def __len__(self) -> int:
        return len(self._inputs[0])

    def read(self, indices: Sequence[int]) -> tuple[tuple[Array, ...], Any]:
        return tuple(array[list(indices)] for array in self._inputs), None

    @property
    def warning(self) -> str:
        """What a reader of the report has to know first."""
        made = f"the statistics of {self.layers} batch norms" if self.layers else "the range of the preprocessing"
        return (
            f"No real sample was seen in calibration: {len(self)} synthetic inputs were made from {made}. Calibrate "
            "with real samples before a release"
        )


def synthetic_samples(
    module: nn.Module, inputs: tuple[TensorSpec, ...], preprocessing: Preprocessing, *, count: int, seed: int
) -> SampleSet:
    """A set of made inputs for a model.

    Args:
        module: In eval mode; takes inputs by position.

    Raises:
        DataError: An input holds integers, whose meaning nothing says.
    """
    whole = next((spec for spec in inputs if not spec.dtype.startswith("float") and spec.range is None), None)
    if whole is not None:
        problem = f"cannot be made for the input {whole.name!r} of {whole.dtype}: nothing says which it may hold"
        fix = "give real samples, or the input's range in model.inputs: range: [0, 30522]"
        raise DataError(problem, where="data.calibration: synthetic", fix=fix)
    generator = torch.Generator().manual_seed(seed)
    parts, layers = [], 0
    with Progress("synthetic inputs", total=STEPS * -(-count // AT_ONCE)) as bar:
        for start in range(0, count, AT_ONCE):
            started = [_random(min(AT_ONCE, count - start), spec, preprocessing, generator) for spec in inputs]
            made, layers = _matched(module, started, bar)
            parts.append(made)
    joined = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
    source = SyntheticSource(joined, layers)
    return SampleSet("calibration", source, inputs, Preprocessing(), tuple(range(count)))


def _random(count: int, spec: TensorSpec, preprocessing: Preprocessing, generator: torch.Generator) -> Tensor:
    """Smooth random images as the model takes them; for other inputs, and without preprocessing, standard normal."""
    if not spec.dtype.startswith("float"):
        assert spec.range is not None
        least, most = spec.range
        return torch.randint(least, most + 1, (count, *spec.shape), generator=generator).to(getattr(torch, spec.dtype))
    plain = preprocessing.scale == 1 and not preprocessing.mean and not preprocessing.std
    if len(spec.shape) != 3:
        return torch.randn(count, *spec.shape, generator=generator)
    height, width = spec.shape[1:]
    found = torch.zeros(count, *spec.shape)
    side = COARSEST
    while side <= max(height, width):
        grid = torch.randn(count, spec.shape[0], min(side, height), min(side, width), generator=generator)
        found += functional.interpolate(grid, (height, width), mode="bilinear") / side**0.5
        side *= 2
    flat = found.flatten(1)
    found = (found - flat.mean(1).view(-1, 1, 1, 1)) / flat.std(1).clamp_min(1e-6).view(-1, 1, 1, 1)
    if plain:
        return found
    low, high = _range(preprocessing)
    return normalise((low + (high - low) * (0.5 + found / 4)).clamp(low, high), preprocessing)


def _range(preprocessing: Preprocessing) -> tuple[float, float]:
    """The stored values that a preprocessing is meant for."""
    unit = preprocessing.scale == 1 and all(abs(each) <= 1 for each in (*preprocessing.mean, *preprocessing.std))
    return (0.0, 1.0) if unit else (0.0, 255.0)


def _matched(module: nn.Module, started: Sequence[Tensor], bar: Progress) -> tuple[list[Tensor], int]:
    """The inputs after optimisation, and how many batch norms they were optimised for."""
    inputs = [tensor.clone().requires_grad_(tensor.is_floating_point()) for tensor in started]
    free = [tensor for tensor in inputs if tensor.requires_grad]
    if not free:
        return inputs, 0
    limits = [(float(tensor.min()), float(tensor.max())) for tensor in map(Tensor.detach, free)]
    optimizer = torch.optim.Adam(free, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    collect, layers = _collector(module), 0
    for _ in range(STEPS):
        with torch.enable_grad():
            found = collect(inputs)
            layers = len(found)
            if not found:
                break
            loss = torch.stack([_distance(layer) for layer in found]).mean()
            gradients = torch.autograd.grad(loss, free, allow_unused=True)
        for tensor, gradient in zip(free, gradients, strict=True):
            tensor.grad = gradient
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for tensor, (low, high) in zip(free, limits, strict=True):
                tensor.clamp_(low, high)
        bar.advance(distance=float(loss.detach()))
    return [tensor.detach() for tensor in inputs], layers


def _distance(layer: Layer) -> Tensor:
    """How far mean and standard deviation are from those of training, in standard deviations, squared."""
    axes = [0, *range(2, layer.value.ndim)]
    spread = layer.variance.clamp_min(1e-8).sqrt()
    mean, std = layer.value.mean(axes), layer.value.var(axes, unbiased=False).clamp_min(1e-12).sqrt()
    return ((mean - layer.mean) / spread).square().mean() + (std / spread - 1).square().mean()


def _collector(module: nn.Module) -> Callable[[Sequence[Tensor]], list[Layer]]:
    """What runs a module, and gives what reaches each of its batch norms: modules, or operators of a program."""
    if isinstance(module, fx.GraphModule):
        return _Reading(module).layers

    def collect(inputs: Sequence[Tensor]) -> list[Layer]:
        found: list[Layer] = []

        def keep(norm: nn.Module, given: tuple[Any, ...]) -> None:
            assert isinstance(norm, _BatchNorm)  # it is hooked to no other
            assert norm.running_mean is not None
            assert norm.running_var is not None
            found.append(Layer(given[0], norm.running_mean, norm.running_var))

        norms = [each for each in module.modules() if isinstance(each, _BatchNorm) and each.running_mean is not None]
        hooks = [norm.register_forward_pre_hook(keep) for norm in norms]
        try:
            if norms:
                module(*inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    return collect


class _Reading(fx.Interpreter):
    """Runs a program, and keeps what its batch norms read."""

    def layers(self, inputs: Sequence[Tensor]) -> list[Layer]:
        self._found: list[Layer] = []
        self.run(*inputs)
        return self._found

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_function" and "batch_norm" in str(n.target):
            given = self.fetch_args_kwargs_from_env(n)[0]
            value, mean, variance = given[0], given[3], given[4]
            if mean is not None:
                self._found.append(Layer(value, mean, variance))
        return super().run_node(n)
