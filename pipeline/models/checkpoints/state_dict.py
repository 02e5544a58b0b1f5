"""A state dict: a factory builds the network, and a ``.safetensors`` or torch file holds its weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pipeline.core import CheckpointError
from pipeline.core.callables import call
from pipeline.core.files import require_file
from pipeline.models.checkpoints.candidates import (
    Candidate,
    Stored,
    dtype_of,
    fitting,
    nearest,
    objects_in,
    tensors_in,
)
from pipeline.models.checkpoints.kinds import require_weights
from pipeline.models.checkpoints.weights_file import SAVE, read_weights

ONE_NETWORK = "several networks are out of scope: write a recipe for each, with a factory that returns it alone"

_SHOWN = 5
"""Mismatches, names or classes in one message."""

logger = logging.getLogger(__name__)


def build(
    factory: str,
    kwargs: dict[str, Any],
    weights: Path | None,
    *,
    choice: str | None = None,
    root: Path = Path(),
    field: str = "kwargs",
) -> tuple[nn.Module, tuple[str, ...]]:
    """A network in eval mode, from its factory; with weights from a file, or the factory's own where there is none.

    Args:
        choice: The key of the weights, where a file holds several that fit.
        field: Where in the recipe the kwargs are, for the messages.

    Returns:
        The network, and notes on how the file's weights became its own.

    Raises:
        CheckpointError: The factory cannot be called so, or the weights are missing, unreadable or another network's.
        RecipeError: The factory cannot be imported.
    """
    module = call(factory, kwargs, root, field=field, refusal=CheckpointError)
    if not isinstance(module, nn.Module):
        what = module.__name__ if isinstance(module, type) else type(module).__name__
        raise CheckpointError(
            f"returned {'the class ' if isinstance(module, type) else ''}{what}, not a torch.nn.Module",
            where=factory,
            fix=ONE_NETWORK if _holds_networks(module) else "return the network, an instance",
        )
    notes: tuple[str, ...] = ()
    if weights is not None:
        require_weights(weights)
        require_file(weights, CheckpointError)
        notes = _fill(module, read_weights(weights), weights, choice)
    return module.eval(), notes


def _holds_networks(returned: Any) -> bool:
    values = returned.values() if isinstance(returned, Mapping) else returned
    return isinstance(returned, Mapping | list | tuple) and sum(isinstance(each, nn.Module) for each in values) > 1


def _fill(module: nn.Module, content: Any, path: Path, choice: str | None) -> tuple[str, ...]:
    """Load the weights, all of them and nothing else; notes on what was changed or left out."""
    stored = list(tensors_in(content))
    _require_tensors(content, stored, path)
    expected = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    chosen = _chosen(stored, expected, choice, type(module).__name__, content, path)
    notes = (*_notes(chosen, expected), *_left_out(chosen, content))
    module.load_state_dict(chosen.weights, strict=False)  # whose own check knows nothing of counters and own states
    logger.debug("filled %s with %d tensors of %s", type(module).__name__, len(chosen.weights), path)
    return notes


def _require_tensors(content: Any, stored: list[Stored], path: Path) -> None:
    """Refuse a file without a dictionary of tensors."""
    objects = list(dict.fromkeys(objects_in(content)))
    if not stored and objects:
        problem = f"holds pickled code, which is never run ({_some(objects)}), and no weights beside it"
        raise CheckpointError(problem, where=str(path), fix=SAVE)
    if not isinstance(content, Mapping) and not stored:
        raise CheckpointError(f"holds {type(content).__name__}, not a state dict of tensors", where=str(path), fix=SAVE)
    if content and not stored:
        kinds = sorted({type(value).__name__ for value in content.values()})
        raise CheckpointError(
            f"holds a dictionary of {_some(kinds)}, not a state dict of tensors", where=str(path), fix=SAVE
        )


def _chosen(
    stored: list[Stored],
    expected: Mapping[str, Tensor],
    choice: str | None,
    network: str,
    content: Any,
    path: Path,
) -> Candidate:
    """The one candidate that fits, or that the recipe chooses.

    Raises:
        CheckpointError: None fits, or several do.
    """
    if choice is not None:
        named = [each for each in stored if f".{choice}." in f".{each.name}"]
        if not named:
            problem = f"has no weights {choice!r}; there are {_some(_places(stored))}"
            raise CheckpointError(problem, where=str(path), fix="correct model.weights")
        stored = named
    found = fitting(stored, expected)
    if len(found) == 1:
        return found[0]
    if found:
        places = [each.prefix or "the file's own keys" for each in found]
        raise CheckpointError(
            f"holds several weights that fit {network}: {', '.join(places)}",
            where=str(path),
            fix=f"choose: model: {{weights: {next(each.prefix for each in found if each.prefix)}}}",
        )
    near = nearest(stored, expected)
    problems = near.problems(expected)
    if not problems:  # of a network that has no weights
        return near
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    under = f" with the weights under {near.prefix!r}" if near.prefix else ""
    flat = not isinstance(content, Mapping) or all(isinstance(value, Tensor) for value in content.values())
    holds = "" if flat else f" (the file holds {_some([repr(key) for key in content])})"
    raise CheckpointError(
        f"does not fit {network}{under}: {'; '.join(problems[:_SHOWN])}{more}{holds}",
        where=str(path),
        fix="give the factory and kwargs that the weights were trained with",
    )


def _places(stored: list[Stored]) -> list[str]:
    """The keys of the dictionaries that hold tensors; of a flat file, the first words of its names."""
    keys = list(dict.fromkeys(each.keys for each in stored if each.keys))
    return keys or list(dict.fromkeys(each.name.partition(".")[0] for each in stored))


def _notes(chosen: Candidate, expected: Mapping[str, Tensor]) -> list[str]:
    """How the file's names and types became the network's."""
    notes = []
    if chosen.prefix:
        notes.append(f"the weights are those under {chosen.prefix!r} in the checkpoint")
    if chosen.added:
        notes.append(f"the checkpoint's names lack the network's {chosen.added + '.'!r}, which was added")
    casts = {
        (dtype_of(tensor), dtype_of(expected[name]))
        for name, tensor in chosen.weights.items()
        if not is_lazy(expected[name]) and tensor.dtype != expected[name].dtype
    }
    notes += [f"weights stored as {stored} were converted to {built}" for stored, built in sorted(casts)]
    return notes


def _left_out(chosen: Candidate, content: Any) -> list[str]:
    """What the file holds beside the weights that no one used."""
    notes = []
    if chosen.left_out:
        notes.append(f"other tensors were left out ({len(chosen.left_out)}): {_some(chosen.left_out)}")
    if objects := list(dict.fromkeys(objects_in(content))):
        notes.append(f"objects beside the weights were not read: {_some(objects)}")
    return notes


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
