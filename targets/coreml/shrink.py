"""Making a specification smaller without changing what it computes.

The converter writes every setting of every operator (strides, padding, an axis, a scale) as a constant of its own with
a name of some forty letters, twice. Of a small network that is a quarter of the package.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import count
from typing import Any

logger = logging.getLogger(__name__)


def shrink(specification: Any) -> None:
    """Store equal constants once, and give internal values short names; in place.

    Inputs and outputs keep their names, and so do layers.

    Args:
        specification: A ``Model`` message with an ML Program.
    """
    for function in specification.mlProgram.functions.values():
        kept = {value.name for value in function.inputs}
        for block in function.block_specializations.values():
            _merge_constants(block)
            kept.update(block.outputs)
            _shorten_names(block, kept)


def _merge_constants(block: Any) -> None:
    """Let all operators use the first of several constants that are equal in type and value."""
    first: dict[bytes, str] = {}
    replaced: dict[str, str] = {}
    operations = []
    for operation in block.operations:
        if operation.type == "const":
            value = operation.attributes["val"].SerializeToString(deterministic=True)
            name = operation.outputs[0].name
            if first.setdefault(value, name) != name and name not in block.outputs:
                replaced[name] = first[value]
                continue
        operations.append(operation)
    logger.debug("%d of %d constants merged with an equal one", len(replaced), len(replaced) + len(first))
    _rename(block, replaced)
    del block.operations[:]
    block.operations.extend(operations)


def _shorten_names(block: Any, kept: set[str]) -> None:
    """Number the block's values; a layer keeps its name, without the converter's suffix."""
    short: dict[str, str] = {}
    numbers = count()
    for operation in _operations(block):
        for value in operation.outputs:
            if value.name not in kept:
                short[value.name] = next(name for number in numbers if (name := f"v{number}") not in kept)
        layer = operation.attributes["name"].immediateValue.tensor.strings.values
        if operation.type == "const":
            layer[:] = [short.get(text, text) for text in layer]
        else:
            layer[:] = [text.removesuffix("_cast_fp16") for text in layer]
    logger.debug("%d values renamed; %s keep their names", len(short), ", ".join(sorted(kept)))
    _rename(block, short)


def _operations(block: Any) -> Iterator[Any]:
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from _operations(inner)


def _rename(block: Any, names: dict[str, str]) -> None:
    """Rename values where they are made and used, in this block and in those within it."""
    for operation in block.operations:
        for argument in operation.inputs.values():
            for binding in argument.arguments:
                if binding.WhichOneof("binding") == "name" and binding.name in names:
                    binding.name = names[binding.name]
        for value in operation.outputs:
            value.name = names.get(value.name, value.name)
        for inner in operation.blocks:
            _rename(inner, names)
    for value in block.inputs:
        value.name = names.get(value.name, value.name)
    block.outputs[:] = [names.get(name, name) for name in block.outputs]
