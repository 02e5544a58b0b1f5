"""How a kind of block is declared and built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from tests.fuzz.data import INPUTS
from tests.fuzz.spec import Block, Network, Option, Value

Pair = Literal["equal", "joinable", "any"]
"""Which second value a block takes beside the first: of equal shape; equal but for the channels; of its own layout."""


class DoesNotFit(Exception):  # noqa: N818  # not an error: the block is left out
    """A block cannot be built for these shapes."""


@dataclass(frozen=True)
class Kind:
    """A kind of block.

    Attributes:
        family: The file that it stands in; families are drawn alike often.
        reads: Per value it takes, the layouts that it knows.
        gives: The layout of its result, or ``same`` as the first value's.
        choices: Per option, what it may be; the first is the simplest.
        build: From the values and the options to a module.
    """

    name: str
    family: str
    reads: tuple[tuple[str, ...], ...]
    gives: str
    pair: Pair
    choices: Mapping[str, tuple[Option, ...]]
    build: Callable[..., nn.Module]


KINDS: dict[str, Kind] = {}


def kind(*reads: str, gives: str = "same", pair: Pair = "equal", **choices: tuple[Option, ...]) -> Any:
    """Declare the decorated function a kind of block, called by its name.

    Args:
        reads: Per value, layouts separated by spaces: ``"image signal"``.
        choices: Options; the function takes each by its name.
    """

    def register(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        family = build.__module__.rpartition(".")[2]
        name = build.__name__.rstrip("_")
        KINDS[name] = Kind(name, family, tuple(tuple(r.split()) for r in reads), gives, pair, choices, build)
        return build

    return register


def make(block: Block, values: list[Value]) -> nn.Module:
    """The module of a block that reads these values.

    Raises:
        Exception: Of any class, where it cannot be built for them.
    """
    found = KINDS[block.kind]
    options = {name: choices[0] for name, choices in found.choices.items()} | block.options
    return found.build(*values, **options)


def features(network: Network) -> tuple[str, ...]:
    """What is in a network, by name: inputs, blocks, each with what it reads and all its options, and the interface.

    >>> features(Network(("pixels",), (Block("from_pixels", (0,), {"form": "normalize"}),), (1,)))[:4]
    ('input pixels', 'from_pixels', 'from_pixels of pixels', 'from_pixels(form=normalize)')
    """
    found = [f"input {name}" for name in network.inputs]
    layouts = [INPUTS[name].value.layout for name in network.inputs]
    for block in network.blocks:
        kind, layout = KINDS[block.kind], layouts[block.reads[0]]
        layouts.append(layout if kind.gives == "same" else kind.gives)
        choices = {name: choices[0] for name, choices in kind.choices.items()} | block.options
        found += [kind.name, f"{kind.name} of {layout}"]
        found += [f"{kind.name}({name}={value})" for name, value in choices.items()]
    interface = {"returns": network.returns, "names": network.names, "settings": network.settings}
    found += [f"{name} {value}" for name, value in interface.items()]
    returned = network.outputs
    found += ["one output twice"] * (len(set(returned)) < len(returned))
    found += ["input returned"] * any(output < len(network.inputs) for output in returned)
    found += ["several outputs"] * (len(returned) > 1)
    return tuple(found)


def resulting_layout(block: Block, values: list[Value]) -> str:
    gives = KINDS[block.kind].gives
    return values[0].layout if gives == "same" else gives


class Compute(nn.Module):
    """A function of itself and its inputs, over the modules, parameters and buffers that it is given."""

    def __init__(self, function: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        self._function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *values: Tensor) -> Tensor:
        return self._function(self, *values)
