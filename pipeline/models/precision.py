"""Precision: whether a module computes in float32, as every target's float file does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.core import CheckpointError
from pipeline.models.function import recording

HALF = (torch.bfloat16, torch.float16)


def require_float32(module: nn.Module, run: Callable[[], object], *, where: str) -> None:
    """Refuse a module that computes in half precision, by itself or under an autocast in its forward.

    Args:
        run: One forward pass of the module.

    Raises:
        CheckpointError: Names the first submodule that does.
    """
    with _Watching() as watching:
        run()
    if watching.found is None:
        return
    with recording(module) as seen:
        run()
    names = (name for name, (_, results) in seen.items() if any(value.dtype in HALF for value in results))
    raise CheckpointError(
        f"{next((f'module {name!r}' for name in names), 'forward')} computes in {watching.found}, and float files "
        "compute in float32",
        where=where,
        fix="leave torch.autocast and casts out of forward; a network that was trained with them runs in float32",
    )


class _Watching(TorchDispatchMode):
    """Watches for results in half precision."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.found: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor) and value.dtype in HALF:
                self.found = self.found or str(value.dtype).removeprefix("torch.")
        return result
