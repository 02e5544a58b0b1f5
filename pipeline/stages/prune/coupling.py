"""Which channels of a network leave together, found by running it once with labels on every tensor.

Parameters and buffers get one label per index of every axis (`labels`). While the network runs, each operator joins the
labels of indices that belong together (`operators`): those of a residual sum, a depthwise convolution, both halves of
a gate, the channels of an attention head. Reshapes and permutations are followed exactly, element by element. What is
left is a partition: per set of labels, the positions in weights and the sizes kept in modules that change with it. The
idea is that of dependency graphs (https://arxiv.org/abs/2301.12900).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.core import StageError
from pipeline.core.outputs import output_tuple
from pipeline.models.capture import Examples, example_inputs, plain_kernels
from pipeline.models.duplicate import copy_module
from pipeline.stages.prune import recurrent
from pipeline.stages.prune.labels import Axes, Axis, Labels, kept_axis
from pipeline.stages.prune.operators import Call, base_name, removes_whole_groups, rule_of

Conv = nn.modules.conv._ConvNd
BatchNorm = nn.modules.batchnorm._NormBase
PRUNABLE = (Conv, nn.Linear, *recurrent.RECURRENT)
HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "heads")
"""Attributes by which attention modules call their number of heads (torch, timm, transformers)."""
OUTPUT = "its channels are the model's output"

Place = tuple[str, int]
"""An axis of a parameter or buffer, by its name."""
Size = tuple[str, str]
"""A module and the attribute that holds a size, with ``[-1]`` behind it for an entry of a tuple."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read code that reshapes channels, where more than one way of removing some of them is possible.

    Attributes:
        cut: Which axis shrinks where channels are cut into several axes, unless one of them is a number of heads: the
            largest (of equals the last), the first or the last.
        written: Whether integers that modules keep, and that equal the size of a part, are taken for that size.
    """

    cut: Literal["largest", "first", "last"] = "largest"
    written: bool = False


READINGS = (Reading(), Reading(written=True), Reading("last"), Reading("first"))


@dataclass(frozen=True, slots=True)
class Together:
    """Everything that goes when one set of channels leaves.

    Attributes:
        places: Per axis of a parameter or buffer, the positions that go.
        sizes: Per size kept in a module, which of its channels go.
        heads: The sizes among them that count attention heads.
        reason: Why the set must stay, or None where it may leave.
    """

    places: Mapping[Place, tuple[int, ...]]
    sizes: Mapping[Size, tuple[int, ...]]
    heads: tuple[Size, ...]
    reason: str | None

    def signature(self) -> tuple[Any, ...]:
        """What sets that can stand for each other have in common: where they are, and how often."""
        return tuple(
            tuple(sorted((key, len(positions)) for key, positions in found.items()))
            for found in (self.places, self.sizes)
        )


@dataclass(frozen=True, slots=True)
class Coupling:
    """All sets of channels of a network.

    Attributes:
        layers: Per prunable layer, in the order of their calls, the set that each output channel belongs to.
        sets: Every set that a layer's output channel belongs to, by number. Number 0 always stays.
    """

    layers: Mapping[str, tuple[int, ...]]
    sets: Mapping[int, Together]


def couple(module: nn.Module, inputs: Examples, reading: Reading = READINGS[0]) -> Coupling:
    """Find the channels of a network that leave together.

    Raises:
        StageError: The network does not run on two samples, nor on one.
    """
    module = copy_module(module).eval()
    for batch in (2, 1):  # a batch of 2 is no axis of size 1, which reshapes would hide; some code wants 1
        trace = _Trace(module, reading)
        try:
            trace.run(example_inputs(inputs, batch))
        except Exception as error:  # whatever the user's forward raises
            failure = error
        else:
            return trace.coupling()
    raise StageError(
        f"its channels cannot be followed: {type(failure).__name__}: {failure}",
        where=f"prune {type(module).__name__}",
        fix="leave prune out for this model",
    ) from failure


@dataclass(eq=False)
class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """One run of a network under labels; see the module."""

    module: nn.Module
    reading: Reading
    labels: Labels = field(default_factory=Labels)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._axes: dict[int, Axes] = {}
        self._alive: list[Tensor] = []  # an id is only unique among living objects
        self._running: list[tuple[str, nn.Module]] = []
        self._layers: dict[str, Axis] = {}
        self._sizes: dict[Size, list[Axis]] = {}
        self._called: set[str] = set()
        self._heads: set[Size] = set()
        self._stored: dict[str, Axes] = {}
        for name, tensor in (*self.module.named_parameters(), *self.module.named_buffers()):
            self._stored[name] = tuple(self.labels.new(size) for size in tensor.shape)
            self._put(tensor, self._stored[name])

    def run(self, inputs: tuple[Tensor, ...]) -> None:
        """Run the module, and forbid the removal of what it returns."""
        self._batch = len(inputs[0])
        with ExitStack() as stack:
            for name, part in self.module.named_modules():
                stack.enter_context(self._watched(name, part))
            stack.enter_context(plain_kernels())
            stack.enter_context(torch.no_grad())
            stack.enter_context(self)
            outputs = output_tuple(self.module(*inputs))
        for output in outputs:
            for axis in self.axes_of(output):
                self.labels.keep(axis, OUTPUT)
        for name, part in self.module.named_modules():
            if isinstance(part, recurrent.RECURRENT) and name in self._called:
                self._couple_recurrent(name, part)
            elif isinstance(part, nn.MultiheadAttention) and name in self._called:
                self._couple_attention(name, part)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = _named(func, args, kwargs or {})
        axes = {name: found for name, value in arguments.items() if (found := self._axes_in(value)) is not None}
        result = func(*args, **(kwargs or {}))
        tensors = [result] if isinstance(result, Tensor) else result if isinstance(result, list | tuple) else []
        if tensors or axes:
            found = rule_of(func)(Call(base_name(func), arguments, axes, result, self)) or []
            labels = found if isinstance(found, list) else [found]
            for tensor, own in zip(tensors, [*labels, *[()] * len(tensors)], strict=False):
                if isinstance(tensor, Tensor):
                    self._put(tensor, own)
        return result

    def axes_of(self, tensor: Tensor) -> Axes:
        """Labels of a tensor; one that no operator made, such as a constant, keeps its size."""
        return self._axes.get(id(tensor)) or tuple(kept_axis(size) for size in tensor.shape)

    def choose_axis(self, sizes: Sequence[int], merged: bool) -> int:
        """Which of several axes that channels were cut into may shrink.

        Args:
            merged: Other axes were merged with the channels first, as attention does with batch and heads.
        """
        if self.reading.cut == "largest":
            for _, part in reversed(self._running):
                counts = [count for attribute in HEAD_COUNTS if (count := vars(part).get(attribute, 1)) != 1]
                for count in counts:
                    size = count * self._batch if merged else count
                    if size in sizes:
                        return list(sizes).index(size)
            return max(range(len(sizes)), key=lambda dim: (sizes[dim], dim))
        return 0 if self.reading.cut == "first" else len(sizes) - 1

    def note_size(self, axis: Axis) -> None:
        """Remember the attributes of running modules that equal the size of a part of channels."""
        if len(axis) < 2 or not axis.any():
            return
        once = axis[: len(axis) // self._batch]
        if self.labels.sets(axis) == self.labels.sets(once) * self._batch:  # attention that merges batch and heads
            axis = once
        for name, part in reversed(self._running):
            for attribute, value in vars(part).items():
                is_size = isinstance(value, int) and value == len(axis) and not attribute.startswith("_")
                if is_size and attribute in HEAD_COUNTS:
                    self._note(name, attribute, axis)
                    self._heads.add((name, attribute))
                elif is_size and self.reading.written and type(part).__module__.partition(".")[0] != "torch":
                    self._note(name, attribute, axis)

    def coupling(self) -> Coupling:
        """What the run has found."""
        layers = {name: tuple(self.labels.sets(axis)) for name, axis in self._layers.items()}
        wanted = {number for numbers in layers.values() for number in numbers} - {0}
        places: dict[int, dict[Place, list[int]]] = {number: {} for number in wanted}
        sizes: dict[int, dict[Size, list[int]]] = {number: {} for number in wanted}
        for name, axes in self._stored.items():
            for dim, axis in enumerate(axes):
                _collect(places, (name, dim), self.labels.sets(axis))
        for size, candidates in self._sizes.items():
            for axis in candidates:
                numbers = self.labels.sets(axis)
                _collect(sizes, size, [number if size not in sizes.get(number, {}) else 0 for number in numbers])
        reasons = self.labels.reasons()
        sets = {
            number: Together(
                {place: tuple(at) for place, at in places[number].items()},
                {size: tuple(at) for size, at in sizes[number].items()},
                tuple(size for size in sizes[number] if size in self._heads),
                reasons.get(number),
            )
            for number in wanted
        }
        return Coupling(layers, sets)

    @contextmanager
    def _watched(self, name: str, part: nn.Module) -> Iterator[None]:
        def enter(_: nn.Module, __: Any) -> None:
            self._running.append((name, part))
            self._called.add(name)

        def leave(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self._running.pop()
            given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            if given is not None and isinstance(output, Tensor):
                self._note_layer(name, part, self.axes_of(given), self.axes_of(output))

        handles = [part.register_forward_pre_hook(enter), part.register_forward_hook(leave, with_kwargs=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note_layer(self, name: str, part: nn.Module, x: Axes, y: Axes) -> None:
        """Remember the sizes that a layer keeps, and its output channels."""
        if isinstance(part, Conv):
            at = -len(part.kernel_size) - 1
            self._layers.setdefault(name, y[at])
            self._note(name, "in_channels", x[at])
            self._note(name, "out_channels", y[at])
            if removes_whole_groups(part.in_channels // part.groups, part.out_channels // part.groups):
                self._note(name, "groups", x[at].reshape(part.groups, -1)[:, 0])
        elif isinstance(part, nn.Linear):
            self._layers.setdefault(name, y[-1])
            self._note(name, "in_features", x[-1])
            self._note(name, "out_features", y[-1])
        elif isinstance(part, BatchNorm):
            self._note(name, "num_features", x[1])
        elif isinstance(part, nn.GroupNorm):
            self._note(name, "num_channels", x[1])
        elif isinstance(part, nn.LayerNorm | nn.RMSNorm):
            for dim in range(-len(part.normalized_shape), 0):
                self._note(name, f"normalized_shape[{dim}]", x[dim])
        elif isinstance(part, nn.Embedding):
            self._note(name, "embedding_dim", y[-1])
        elif isinstance(part, nn.PReLU) and part.num_parameters > 1:
            self._note(name, "num_parameters", x[1])

    def _couple_recurrent(self, name: str, part: nn.Module) -> None:
        """Join what one ``hidden_size`` stands for: every gate, layer and direction."""
        weights = {key: self.axes_of(weight) for key, weight in part.named_parameters()}
        hidden, inputs = recurrent.joined(part, weights, self.labels)
        self._layers[name] = hidden
        self._note(name, "hidden_size", hidden)
        self._note(name, "input_size", inputs)

    def _couple_attention(self, name: str, part: nn.MultiheadAttention) -> None:
        """Join what one ``embed_dim`` stands for: the channels of the stream, and those of all heads."""
        output, projection = self.axes_of(part.out_proj.weight), f"{name}.out_proj".removeprefix(".")
        streams = [output[0]]
        if part.in_proj_weight is not None:
            rows, columns = self.axes_of(part.in_proj_weight)
            streams += [*rows.reshape(3, -1), columns]
        else:
            weights = (part.q_proj_weight, part.k_proj_weight, part.v_proj_weight)
            streams += [self.axes_of(weight)[0] for weight in weights]
        for stream in streams:
            self.labels.join(output[1], stream, "")
        sizes = ("embed_dim", "kdim", "vdim") if part.in_proj_weight is not None else ("embed_dim",)
        for attribute in sizes:
            self._note(name, attribute, output[1])
        self._note(projection, "in_features", output[1])
        self._note(projection, "out_features", output[1])
        self._layers[projection] = output[0]

    def _note(self, name: str, attribute: str, axis: Axis) -> None:
        self._sizes.setdefault((name, attribute), []).append(axis)

    def _axes_in(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.axes_of(value)
        if isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
            return [self.axes_of(item) for item in value if isinstance(item, Tensor)]
        return None

    def _put(self, tensor: Tensor, axes: Axes) -> None:
        """Give a tensor its labels; an axis of size 1 has none."""
        padded = axes if len(axes) == tensor.ndim else tuple(kept_axis(size) for size in tensor.shape)
        self._axes[id(tensor)] = tuple(
            kept_axis(size) if size == 1 or len(axis) != size else axis
            for axis, size in zip(padded, tensor.shape, strict=True)
        )
        self._alive.append(tensor)


def _collect(found: dict[int, dict[Any, list[int]]], key: Any, numbers: Sequence[int]) -> None:
    for position, number in enumerate(numbers):
        if number in found:
            found[number].setdefault(key, []).append(position)


def _named(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of an operator's call by name, defaults included."""
    schema = func._schema.arguments
    defaults = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    return defaults | dict(zip((argument.name for argument in schema), args, strict=False)) | kwargs
