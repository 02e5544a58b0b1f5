"""What a random network is: a short list of blocks that can be printed, cut down, and built again from its text."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

Option = int | float | str | bool | None


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor between blocks.

    Attributes:
        layout: What its axes mean: ``image`` (C, H, W), ``signal`` (C, L), ``tokens`` (T, C), ``vector`` (C,),
            ``channels_last`` (H, W, C), ``volume`` (C, D, H, W), ``ids`` (T,), ``mask`` (T,), ``answer`` (any shape,
            only for outputs).
        shape: Without the batch.
    """

    layout: str
    shape: tuple[int, ...]

    @property
    def channels(self) -> int:
        return self.shape[-1] if self.layout in ("tokens", "channels_last", "vector") else self.shape[0]


@dataclass(frozen=True, slots=True)
class Block:
    """One block.

    Attributes:
        kind: A name in `tests.fuzz.blocks.KINDS`.
        reads: Positions of the values it takes: the network's inputs come first, then the results of the blocks.
        options: The options that differ from the simplest choice.
    """

    kind: str
    reads: tuple[int, ...]
    options: dict[str, Option] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Network:
    """A network.

    Attributes:
        inputs: Names in `tests.fuzz.data.INPUTS`.
        outputs: Positions of the values that it returns.
        returns: ``tensor`` or a container: ``tuple``, ``list``, ``dict``, ``namedtuple``.
        names: How inputs and outputs are called: a key of `tests.fuzz.networks.NAMES`.
        settings: How it is quantized: a key of `tests.fuzz.subject.SETTINGS`.
        seed: Of its weights and samples.
    """

    inputs: tuple[str, ...]
    blocks: tuple[Block, ...]
    outputs: tuple[int, ...]
    returns: str = "tensor"
    names: str = "plain"
    settings: str = "fast"
    seed: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """What shrinking makes smaller: blocks, inputs and outputs; then everything that is not the simplest."""
        options = sum(len(block.options) for block in self.blocks)
        interface = (self.returns not in ("tensor", "tuple")) + (self.names != "plain") + (self.settings != "fast")
        return len(self.blocks) + len(self.inputs) + len(self.outputs), options + interface

    def text(self) -> str:
        """The network as one line of JSON."""
        content: dict[str, Any] = {
            "inputs": list(self.inputs),
            "blocks": [[b.kind, list(b.reads), *([b.options] if b.options else [])] for b in self.blocks],
            "outputs": list(self.outputs),
        }
        default = Network((), (), ())
        content |= {
            name: getattr(self, name)
            for name in ("returns", "names", "settings", "seed")
            if getattr(self, name) != getattr(default, name)
        }
        return json.dumps(content)

    @classmethod
    def from_text(cls, text: str) -> Network:
        """The network of `text`."""
        content = json.loads(text)
        blocks = tuple(Block(kind, tuple(reads), *options) for kind, reads, *options in content.pop("blocks"))
        rest = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
        return cls(blocks=blocks, **rest)

    def without_unread(self) -> Network:
        """The same function without the inputs and blocks that no output depends on; one input always stays."""
        first = len(self.inputs)
        needed = set(self.outputs)
        for position in reversed(range(len(self.blocks))):
            if first + position in needed:
                needed.update(self.blocks[position].reads)
        if not any(index in needed for index in range(first)):
            needed.add(0)
        kept = [index for index in range(first + len(self.blocks)) if index in needed]
        at = {index: position for position, index in enumerate(kept)}
        return replace(
            self,
            inputs=tuple(name for index, name in enumerate(self.inputs) if index in needed),
            blocks=tuple(
                replace(block, reads=tuple(at[read] for read in block.reads))
                for position, block in enumerate(self.blocks)
                if first + position in needed
            ),
            outputs=tuple(at[output] for output in self.outputs),
        )
