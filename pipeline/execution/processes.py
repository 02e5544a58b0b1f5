"""Several processes that share a run, under ``accelerate launch`` or ``torchrun``.

All take part in training. The first one does the rest and alone writes, while the others wait. They must see the same
folders.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env

T = TypeVar("T")


def processes() -> PartialState:
    """The processes that share this run, usually one; those that do not work wait for the one that does.

    Unless it is told that there is no accelerator, accelerate takes processes on a CPU for separate runs.
    """
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=on_cpu, timeout=timedelta(days=7))


def decided_by_the_first(value: T) -> T:
    """The first process's value, in every process: what one of them sees a moment later may differ."""
    decided: list[T] = broadcast_object_list([value])
    return decided[0]


def wait_for_the_first() -> None:
    """Return when the first process has come here too."""
    broadcast_object_list([None])
