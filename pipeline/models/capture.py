"""Programs: capturing a module with torch.export, and counting what it costs."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, is_concrete_int
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.core import StageError, TensorSpec, first_line
from pipeline.models.composites import composed
from pipeline.models.plain_forms import in_plain_forms

logger = logging.getLogger(__name__)


ONE_STEP = (
    "what runs may not depend on values: a loop that generates until it is done is out of scope, so give the network "
    "of one step; choose between values with torch.where"
)

UNLIKE = 13
"""The batch size with which a program of a dynamic batch is captured. torch keeps a size fixed that some operator found
equal to another one, such as two steps of a sequence, so this one is equal to few."""

Examples = tuple[TensorSpec, ...] | tuple[Tensor, ...]
"""What a module is tried on: real samples, one tensor ``(N, …)`` per input; specs where there are no samples yet."""


def example_inputs(inputs: Examples, batch_size: int = 1) -> tuple[Tensor, ...]:
    """Inputs of the right shape: real samples where there are any, repeated where they are too few.

    For specs, values are made up: seeded standard normal ones for floats; for integers random ones in their range, or
    zeros where they have none. Zeros fit no model that looks at them: no token is masked, and a sequence has length 0.
    `Model.examples` does.

    >>> example_inputs((torch.tensor([3, 5]),), 3)
    (tensor([3, 5, 3]),)
    """
    tensors = tuple(value for value in inputs if isinstance(value, Tensor))
    if tensors:
        return tuple(value[torch.arange(batch_size) % len(value)] for value in tensors)
    generator = torch.Generator().manual_seed(0)
    return tuple(_made_up(spec, batch_size, generator) for spec in inputs if isinstance(spec, TensorSpec))


def _made_up(spec: TensorSpec, batch_size: int, generator: torch.Generator) -> Tensor:
    shape, dtype = (batch_size, *spec.shape), getattr(torch, spec.dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=dtype)
    if spec.range is None:
        return torch.zeros(shape, dtype=dtype)
    least, most = spec.range
    end = most if most - least > 1 else most + 1  # many write the size of the vocabulary for its last token
    return torch.randint(least, end, shape, generator=generator).to(dtype)


def capture(
    module: nn.Module,
    inputs: tuple[TensorSpec, ...],
    *,
    examples: tuple[Tensor, ...] = (),
    batch_size: int | None = None,
    dynamic: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> ExportedProgram:
    """Capture a module as a graph of ATen operators (https://docs.pytorch.org/docs/stable/export.html).

    Args:
        examples: Real samples, where there are any (see `example_inputs`).
        batch_size: The one batch size of the program; None asks for a dynamic batch, and falls back to batch 1 for a
            module whose own code fixes the batch.
        dynamic: Per input, axes other than the batch whose size may vary. An axis that the module's own code fixes
            stays fixed.

    Raises:
        StageError: torch.export cannot trace the module.
    """
    arguments = example_inputs(examples or inputs, batch_size or UNLIKE)
    batch = [0] if batch_size is None else []
    axes = tuple(dict.fromkeys((*batch, *dynamic.get(spec.name, ())), Dim.AUTO) for spec in inputs)
    shapes = dict(inspect.signature(module.forward).bind(*axes).arguments) if any(axes) else None  # (*xs) is nested
    try:
        with torch.no_grad():
            program = torch.export.export(module, arguments, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch.export raises a different class for every way a module cannot be traced
        if batch_size is None:  # its code may take one sample at a time
            return capture(module, inputs, examples=examples, batch_size=1, dynamic=dynamic)
        by_values = isinstance(error, GuardOnDataDependentSymNode) or "data-dependent" in str(error)
        raise StageError(
            f"torch.export cannot capture it: {first_line(error)}",
            where=type(module).__name__,
            fix=ONE_STEP if by_values else "make forward traceable: https://docs.pytorch.org/docs/stable/export.html",
        ) from error
    if batch_size is None and fixed_batch_size(program) is not None:
        logger.debug("the code of %s fixes the batch: captured again with batch 1", type(module).__name__)
        return capture(module, inputs, examples=examples, batch_size=1, dynamic=dynamic)
    return in_plain_forms(composed(_with_named_axes(program)))


def _with_named_axes(program: ExportedProgram) -> ExportedProgram:
    """The program with every ``squeeze()`` limited to the axes that have size 1 here, so that a batch of 1 stays."""
    aten = torch.ops.aten
    for node in program.graph.find_nodes(op="call_function", target=aten.squeeze.default):
        shape = node.args[0].meta["val"].shape
        node.target = aten.squeeze.dims
        node.args = (node.args[0], [axis for axis, size in enumerate(shape) if is_concrete_int(size) and size == 1])
        logger.debug("%s: limited to axes %s", node.name, node.args[1])
    return program


def fixed_batch_size(program: ExportedProgram) -> int | None:
    """The one batch size a program takes, or None where its batch is dynamic."""
    names = set(program.graph_signature.user_inputs)
    first = next(node for node in program.graph.nodes if node.op == "placeholder" and node.name in names)
    size = first.meta["val"].shape[0]  # a symbol may stand for a single number that the traced code requires
    return int(size) if is_concrete_int(size) else None


def count_parameters(module: nn.Module) -> int:
    """Elements in all weights and biases."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(module: nn.Module, inputs: Examples) -> int:
    """Multiply-accumulates of one sample's forward pass: convolutions, matrix products and attention.

    Runs without the fast kernels of LSTM, attention and encoder layers on CPUs, which the counter does not know.
    """
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _Nowhere()  # type: ignore[assignment]  # all that the counter needs of one
    with plain_kernels(), counter, torch.no_grad():
        module(*example_inputs(inputs))
    return int(counter.get_total_flops()) // 2


class _Nowhere(nullcontext[None]):
    """Stands for torch's tracker of modules, which fails where a module is called on a parameter."""

    parents = frozenset({"Global"})


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Within, recurrent layers and attention run as many known operators instead of one that hides them."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TF32 acceleration")  # about Intel's GPUs, which this does not use
            with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
