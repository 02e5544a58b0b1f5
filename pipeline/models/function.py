"""Whether a module is a function of each sample: the same answer twice, in any batch, and nothing kept from a call.

Everything later rests on it. Dropout that is left on, batch statistics and caches pass every other check and end in a
file that answers differently each time, or differently from the module.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from pipeline.core import StageError, first_line

REPEATED_DB, ALONE_DB = 100.0, 60.0
"""SQNR from which two calls gave the same but for rounding: with the same inputs, and with other samples beside."""

Calls = dict[str, tuple[list[Tensor], list[Tensor]]]
"""What submodules took and gave in one forward pass, by their names."""


def require_function(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Refuse a module whose outputs for a sample depend on chance, on other samples, or on earlier calls.

    A copy is run, never the module itself. A module that takes one sample at a time only is not compared in batches.

    Args:
        inputs: Real samples ``(N, …)``, best a few.

    Raises:
        StageError: Names the module or buffer, and the fix.
    """
    inputs = _fitting(copy.deepcopy(module), inputs)
    tested = copy.deepcopy(module)
    before = {name: (kind, tensor.detach().clone()) for name, kind, tensor in _state(tested)}
    first, seen = _run(tested, inputs)
    for name, kind, tensor in _state(tested):
        if name in before and not _same([before[name][1]], [tensor.detach()], float("inf")):
            raise _refusal(
                module, f"forward changes the {kind} {name!r}", "compute it from the inputs, or keep it outside"
            )
    second, again = _run(tested, inputs)
    if not _same(first, second, REPEATED_DB):
        raise _refusal(module, *_why_not_repeatable(tested, seen, again))
    if len(inputs[0]) > 1:
        _require_independent_samples(module, tested, inputs, first)


def _state(module: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    yield from ((name, "buffer", tensor) for name, tensor in module.named_buffers())
    yield from ((name, "parameter", tensor) for name, tensor in module.named_parameters())


def _fitting(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """As many of the samples as the module takes: all, or one where its own code, or its program, asks for that."""
    try:
        _run(module, inputs)
    except Exception:  # the user's forward may raise anything
        for index in range(len(inputs[0])):
            try:
                _run(module, tuple(value[index : index + 1] for value in inputs))
            except Exception as error:
                raise _refusal(
                    module, f"forward fails on a sample: {first_line(error)}", "give samples that the model takes"
                ) from error
        return tuple(value[:1] for value in inputs)
    return inputs


def _require_independent_samples(
    module: nn.Module, tested: nn.Module, inputs: tuple[Tensor, ...], together: list[Tensor]
) -> None:
    """Refuse a module that answers a sample differently when it is alone."""
    count = len(inputs[0])
    try:
        alone, _ = _run(tested, tuple(value[:1] for value in inputs))
    except Exception as error:  # the user's forward may raise anything
        alone_fails = (
            f"forward works with {count} samples but not with one: {first_line(error)}",
            "take the batch size from the input's shape",
        )
        raise _refusal(module, *(_norm_of_the_batch(tested) or alone_fails)) from error
    for one, all_of_them in zip(alone, together, strict=True):
        batched = all_of_them.ndim > 0 and len(all_of_them) == count
        if batched and all_of_them.is_floating_point() and not _same([all_of_them[:1]], [one], ALONE_DB):
            raise _refusal(module, *_why_dependent(tested))


def _why_not_repeatable(module: nn.Module, first: Calls, second: Calls) -> tuple[str, str]:
    """The innermost module that answered the same inputs differently the second time, and what to do."""
    culprit = next((name for name in first if name in second and _differs(first[name], second[name])), "")
    where = f"module {culprit!r}" if culprit else "forward"
    part = module.get_submodule(culprit) if culprit else module
    if isinstance(part, _DropoutNd):
        return f"{where} drops values at random", "call model.eval() last in the factory"
    return (
        f"{where} gives another result the second time, for the same inputs",
        "pass training=self.training to F.dropout, and use no random numbers or state in forward",
    )


def _differs(one: tuple[list[Tensor], list[Tensor]], other: tuple[list[Tensor], list[Tensor]]) -> bool:
    return _same(one[0], other[0], REPEATED_DB) and not _same(one[1], other[1], REPEATED_DB)


def _why_dependent(module: nn.Module) -> tuple[str, str]:
    mixed = ("a sample's outputs depend on the other samples of its batch", "compute each sample by itself")
    return _norm_of_the_batch(module) or mixed


def _norm_of_the_batch(module: nn.Module) -> tuple[str, str] | None:
    """The first batch norm that has no statistics of its own to use, and what to do."""
    norms = [
        name
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm) and (part.training or part.running_mean is None)
    ]
    if not norms:
        return None
    where = f"module {norms[0]!r}" if norms[0] else "it"
    return (
        f"{where} normalises by the statistics of the batch",
        "use track_running_stats=True, and call model.eval() last in the factory",
    )


def _refusal(module: nn.Module, problem: str, fix: str) -> StageError:
    return StageError(problem, where=type(module).__name__, fix=fix)


def _run(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], Calls]:
    """The outputs, and what every submodule took and gave, by its name, in the order in which they ended."""
    with torch.no_grad(), recording(module) as seen:
        result = module(*inputs)
    return _tensors(result), seen


@contextmanager
def recording(module: nn.Module) -> Iterator[Calls]:
    """Collects what every submodule takes and gives while the module runs."""
    seen: Calls = {}
    hooks = []
    for name, part in module.named_modules():
        if name:
            hooks.append(part.register_forward_hook(_recorder(seen, name)))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _recorder(seen: Calls, name: str) -> Any:
    def record(_: nn.Module, arguments: Any, result: Any) -> None:
        for kept, values in zip(seen.setdefault(name, ([], [])), (arguments, result), strict=True):
            kept.extend(value.detach().clone() for value in _tensors(values))

    return record


def _tensors(result: Any) -> list[Tensor]:
    """All tensors of a module's result, whatever it is packed in."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, dict):
        result = list(result.values())
    if isinstance(result, list | tuple):
        return [tensor for part in result for tensor in _tensors(part)]
    return []


def _same(expected: list[Tensor], found: list[Tensor], least_db: float) -> bool:
    """Whether values agree to this SQNR; NaNs and infinities have to be at the same places."""
    if [value.shape for value in expected] != [value.shape for value in found]:
        return False
    for one, other in zip(expected, found, strict=True):
        a, b = _reals(one), _reals(other)
        differs = ~((a == b) | (a.isnan() & b.isnan()))
        if differs.any():
            noise, signal = (a - b)[differs].square().sum(), a[torch.isfinite(a)].square().sum()
            if not torch.isfinite(noise) or signal == 0 or 10 * torch.log10(signal / noise) < least_db:
                return False
    return True


def _reals(value: Tensor) -> Tensor:
    """Values in float64; of complex ones, both parts."""
    return (torch.view_as_real(value) if value.is_complex() else value).double()
