"""Proof that a removal is what it is meant to be: the pruned network equals the original with those channels at zero.

At zero means: every weight and bias of a removed channel is zero, in the layers that made it, in norms, and in the
layers that read it. A norm over all channels takes its mean over those that are left. This is checked on real samples,
for all groups at once where they pass, else by bisection, and again for what is removed in the end.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.core import SkippedLayer
from pipeline.core.outputs import output_tuple
from pipeline.models.capture import Examples, example_inputs, plain_kernels
from pipeline.models.duplicate import copy_module
from pipeline.stages.prune.channels import (
    CoupledChannels,
    Step,
    computed_weights,
    gone_places,
    gone_sizes,
    norm_hook,
    remove,
    steps_of,
)

logger = logging.getLogger(__name__)

LEAST_SQNR_DB = 80.0
"""Rounding in float32 leaves above 100 dB; the channels of another layer leave below 40."""
_SAMPLES = 4
_ChannelNorm = nn.LayerNorm | nn.RMSNorm | nn.GroupNorm


class Guard:
    """Compares prunings of one module with the module itself, on a few samples."""

    def __init__(self, module: nn.Module, inputs: Examples) -> None:
        self._module, self._examples = module, example_inputs(inputs)
        self._samples = _trials(module, inputs)
        with _Numbers() as numbers:
            self._shapes = _shapes(_outputs(module, self._examples))
        self._numbers = numbers.found

    def verified(
        self, groups: Sequence[CoupledChannels], max_layer_ratio: float, beside: Sequence[CoupledChannels] = ()
    ) -> tuple[list[CoupledChannels], tuple[SkippedLayer, ...]]:
        """The groups that can be removed, also together and in part, and why the others cannot.

        Args:
            beside: Groups that were verified before, and that these must get along with.
        """

        def fault(tried: Sequence[CoupledChannels]) -> str | None:
            every = [steps_of(group, max_layer_ratio) for group in (*beside, *tried)]
            some = [steps[: 1 + number % len(steps)] for number, steps in enumerate(every)]
            return self.fault_of(list(chain(*every))) or self.fault_of(list(chain(*some)))

        reasons: dict[int, str] = {}
        kept = _passing(list(groups), [], fault, reasons)
        skipped = [
            SkippedLayer(layer=layer, reason=reasons[id(group)])
            for group in groups
            if id(group) in reasons
            for layer in group.layers
        ]
        return kept, tuple(skipped)

    def faulty_groups(self, steps: Sequence[Step]) -> tuple[list[CoupledChannels], tuple[SkippedLayer, ...]]:
        """The groups because of which these steps together are not what they are meant to be; most often none."""
        groups = list({id(step.group): step.group for step in steps}.values())

        def fault(tried: Sequence[CoupledChannels]) -> str | None:
            chosen = {id(group) for group in tried}
            return self.fault_of([step for step in steps if id(step.group) in chosen])

        reasons: dict[int, str] = {}
        _passing(groups, [], fault, reasons)
        faulty = [group for group in groups if id(group) in reasons]
        return faulty, tuple(
            SkippedLayer(layer=layer, reason=reasons[id(group)]) for group in faulty for layer in group.layers
        )

    def fault_of(self, steps: Sequence[Step]) -> str | None:
        """What is wrong with a network without these channels, or None."""
        if not steps:
            return None
        kind = steps[0].group.kind
        try:
            pruned = remove(self._module, steps)
            with _Numbers() as numbers:
                shapes = _shapes(_outputs(pruned, self._examples))
            zeroed = held_at_zero(self._module, steps)
            outputs, expected = _outputs(pruned, self._samples), _outputs(zeroed, self._samples)
        except Exception as error:  # a forward of the user's, on layers of sizes it did not expect
            return " ".join(f"without some of its {kind} the model does not run: {error}".split())
        if shapes != self._shapes:
            return f"without some of its {kind} the outputs change from {self._shapes} to {shapes}"
        if (other := _other_number(self._numbers, numbers.found)) is not None:
            return f"without some of its {kind} its code computes with another number: {other}"
        found = _least_db(expected, outputs)
        if not found >= LEAST_SQNR_DB:  # also where it is not a number
            found = self._in_double_precision(zeroed, pruned)
        if not found >= LEAST_SQNR_DB:
            return f"without some of its {kind} the model is not the original with these at zero ({found:.0f} dB)"
        return None

    def _in_double_precision(self, zeroed: nn.Module, pruned: nn.Module) -> float:
        """The same comparison, for networks that magnify the rounding of float32; 0 where they run in nothing else."""
        samples = tuple(value.double() if value.is_floating_point() else value for value in self._samples)
        try:
            return _least_db(_outputs(zeroed.double(), samples), _outputs(copy_module(pruned).double(), samples))
        except Exception:  # a forward of the user's that makes float32 tensors itself
            return 0.0


class _Numbers(TorchDispatchMode):
    """Records the numbers that a forward computes with: a scale that its code takes from a size changes with the size.

    Samples alone may not show it: attention with saturated scores gives the same whatever they are divided by.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.found: list[tuple[str, tuple[float, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.pointwise in func.tags:
            numbers = tuple(float(value) for value in args if _is_number(value))
            self.found.append((func.overloadpacket.__name__, numbers))
        return func(*args, **(kwargs or {}))


def _is_number(value: Any) -> bool:
    """Whether an argument is a Python number, which torch may have made a tensor in double precision."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and value.dtype == torch.float64
    return isinstance(value, int | float) and not isinstance(value, bool)


def _other_number(
    before: Sequence[tuple[str, tuple[float, ...]]], after: Sequence[tuple[str, tuple[float, ...]]]
) -> str | None:
    """The first number that became another one; None where the code ran through other operators, or there is none."""
    if [name for name, _ in before] != [name for name, _ in after]:
        return None
    for (name, old), (_, new) in zip(before, after, strict=True):
        for one, other in zip(old, new, strict=False):
            if not math.isclose(one, other, rel_tol=1e-6):
                return f"{one:.4g} becomes {other:.4g} in {name}"
    return None


def _passing(
    candidates: list[CoupledChannels],
    kept: list[CoupledChannels],
    fault: Callable[[Sequence[CoupledChannels]], str | None],
    reasons: dict[int, str],
) -> list[CoupledChannels]:
    """Candidates that pass beside those kept: all at once, else each half after the other."""
    if not candidates:
        return []
    reason = fault([*kept, *candidates])
    if reason is None:
        return candidates
    if len(candidates) == 1:
        reasons[id(candidates[0])] = reason
        return []
    middle = len(candidates) // 2
    first = _passing(candidates[:middle], kept, fault, reasons)
    return first + _passing(candidates[middle:], [*kept, *first], fault, reasons)


@torch.no_grad()
def held_at_zero(module: nn.Module, steps: Sequence[Step]) -> nn.Module:
    """A copy with the channels of ``steps`` at zero, in which norms over channels look at the others only."""
    module = copy_module(module).eval()
    pruned = remove(module, steps)
    for (name, attribute), gone in gone_sizes(steps).items():
        norm = module.get_submodule(name)
        if isinstance(norm, _ChannelNorm):
            axis = 1 if isinstance(norm, nn.GroupNorm) else int(attribute.partition("[")[2][:-1])
            norm.register_forward_hook(_NormOfSome(pruned.get_submodule(name), axis, gone))
    places = gone_places(steps)
    for owner, weight, axes in computed_weights(module, places):
        places[_fix(module, owner, weight)] = axes
    tensors = dict((*module.named_parameters(), *module.named_buffers()))
    for name in tensors.keys() & places.keys():
        for axis, positions in places[name].items():
            # a variance of 0 would be divided by
            tensors[name].index_fill_(axis, torch.tensor(positions), float(name.endswith("running_var")))
    return module


def _fix(module: nn.Module, owner: str, weight: str) -> str:
    """Put what a parametrization gives in its place; returns the name of that tensor."""
    part = module.get_submodule(owner)
    if (hook := norm_hook(part)) is not None:
        (nn.utils.remove_weight_norm if isinstance(hook, WeightNorm) else nn.utils.remove_spectral_norm)(part, weight)
        return f"{owner}.{weight}".removeprefix(".")
    inner = f"{owner}.parametrizations.{weight}".removeprefix(".")
    module.set_submodule(inner, _Fixed(getattr(part, weight)))
    return f"{inner}.value"


class _Fixed(nn.Module):
    """What a parametrization gave, in its place; torch's own removal would change the class that copies share."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value.detach().clone(), requires_grad=False)

    def forward(self) -> Tensor:
        return self.value


@dataclass(frozen=True, slots=True)
class _NormOfSome:
    """A hook that puts a norm over some channels in the place of one over all; the others become zero."""

    norm: nn.Module
    axis: int
    gone: Sequence[int]

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept = torch.tensor(sorted(set(range(output.shape[self.axis])) - set(self.gone)))
        left = self.norm.to(output.dtype)(inputs[0].index_select(self.axis, kept))
        return torch.zeros_like(output).index_copy(self.axis, kept, left)


def _trials(module: nn.Module, inputs: Examples) -> tuple[Tensor, ...]:
    """A few samples that the module takes at once, or one where its own code asks for that.

    Made-up integers are 0 and 1: with zeros alone a mask would hide everything, also what is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    examples = example_inputs(inputs, _SAMPLES)
    varied = tuple(
        value
        if value.is_floating_point() or isinstance(given, Tensor)
        else torch.randint(0, 2, value.shape, generator=generator).to(value.dtype)
        for value, given in zip(examples, inputs, strict=True)
    )
    for samples in (varied, examples):
        try:
            _outputs(module, samples)
        except Exception:
            continue
        return samples
    return example_inputs(inputs)


@torch.no_grad()
def _outputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    with plain_kernels():  # fused ones read the weights of norms that hooks replace
        return output_tuple(module(*(tensor.clone() for tensor in inputs)))


def _shapes(outputs: Sequence[Tensor]) -> list[list[int]]:
    return [list(tensor.shape) for tensor in outputs]


def _least_db(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    return min(map(_sqnr_db, expected, found))


def _sqnr_db(expected: Tensor, found: Tensor) -> float:
    """Signal to error in decibels; what is not finite in both counts as equal."""
    if not expected.is_floating_point():
        return float("inf") if torch.equal(expected, found) else 0.0
    same = (expected == found) | (expected.isnan() & found.isnan())
    signal = expected.double().where(expected.isfinite(), 0).square().sum()
    error = (expected.double() - found.double()).where(~same, 0).square().sum()
    return float("inf") if error == 0 else float(10 * torch.log10(signal / error))
