"""What modules return, in one form."""

from __future__ import annotations

from typing import Any


def output_tuple(result: Any) -> tuple[Any, ...]:
    """What a module returned, a tensor or a tuple or list of tensors, as a tuple.

    >>> output_tuple(1), output_tuple([1, 2])
    ((1,), (1, 2))
    """
    return tuple(result) if isinstance(result, tuple | list) else (result,)
