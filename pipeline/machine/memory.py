"""The memory guard: a step that does not fit is refused, with figures, before the kernel ends the process.

What a step needs is measured on a few samples and scaled to its batch; what there is, is the least of what the system,
the process's control groups (containers have one) and its own limit leave.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.core import EdgewrightError

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that a step allocates for a batch: some in any case, and some for each sample."""

    fixed: int
    per_sample: int

    def of(self, batch_size: int) -> int:
        """Bytes for a batch of this size."""
        return self.fixed + batch_size * self.per_sample

    def fitting(self, limit: int, nbytes: int) -> int:
        """The largest batch, up to ``limit``, that stays within some bytes; 1 where none does.

        >>> Footprint(100, 10).fitting(64, 200), Footprint(100, 10).fitting(4, 200), Footprint(100, 10).fitting(64, 50)
        (10, 4, 1)
        """
        if self.per_sample == 0:
            return limit
        return max(1, min(limit, (nbytes - self.fixed) // self.per_sample))


def require_memory(step: str, needed: int, *, fix: str) -> None:
    """Refuse a step that needs more memory than there is.

    Args:
        step: What is about to be done, as a user knows it.
        needed: Bytes that it will allocate.
        fix: What makes it smaller.

    Raises:
        EdgewrightError: Names the step, what it needs, what there is and the fix.
    """
    available = available_bytes()
    logger.debug("%s needs %s, %s are available", step, _size(needed), _size(available))
    if needed > available:
        raise EdgewrightError(
            f"needs about {_size(needed)} of memory, and {_size(available)} are available", where=step, fix=fix
        )


def require_batch(step: str, footprint: Footprint, batch_size: int, *, extra: int = 0, setting: str) -> None:
    """Refuse a batch whose results depend on its size, where it needs more memory than there is.

    Args:
        extra: Bytes that the step needs besides its batch.
        setting: The key of the recipe that makes the batch smaller.

    Raises:
        EdgewrightError: See `require_memory`; its fix names the largest batch that fits.
    """
    fits = footprint.fitting(batch_size, available_bytes() - extra)
    smaller = footprint.of(fits) + extra <= available_bytes()
    fix = f"set {setting} to {fits} or less" if smaller else "use a machine with more memory, or a smaller network"
    require_memory(f"{step} in batches of {batch_size}", footprint.of(batch_size) + extra, fix=fix)


def affordable_batch(step: str, footprint: Footprint, limit: int) -> int:
    """How many samples to run at once where the results do not depend on it: at most half of the memory is taken.

    Raises:
        EdgewrightError: Not even one sample fits.
    """
    require_memory(f"{step}, one sample", footprint.of(1), fix="use a machine with more memory, or smaller inputs")
    size = footprint.fitting(limit, available_bytes() // 2)
    if size < limit:
        logger.info("%s runs %d samples at once instead of %d: memory is short", step, size, limit)
    return size


def footprint(run: Callable[[int], object]) -> Footprint:
    """Measure what a step allocates, on one sample and on two.

    Args:
        run: Carries out the step on so many samples, and changes nothing. It may raise, as a network does that takes
            one sample at a time, or one that is broken, of which the step itself will say what is wrong.

    Returns:
        What could be measured: nothing, where one sample fails.
    """
    try:
        one = allocated(lambda: run(1))
    except Exception:
        logger.debug("the memory of a step cannot be measured", exc_info=True)
        return Footprint(0, 0)
    try:
        per_sample = max(0, allocated(lambda: run(2)) - one)
    except Exception:
        per_sample = 0
    return Footprint(max(0, one - per_sample), per_sample)


def allocated(call: Callable[[], object]) -> int:
    """The most bytes of new tensors that live at the same time during a call, its result included.

    >>> allocated(lambda: torch.ones(1000).add(1).sum())
    8000
    """
    found = _Allocations()
    with torch.random.fork_rng(devices=[]), found:
        call()
    return found.peak


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Follows the storages that operators create until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.peak = self._live = 0
        self._known: dict[int, tuple[Any, int]] = {}  # weak references and bytes

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        before = {_address(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and _address(tensor) not in before:
                self._add(tensor)
        return result

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]  # as above
        if reference.cdata in self._known:
            return
        self._known[reference.cdata] = reference, storage.nbytes()
        self._live += storage.nbytes()
        if self._live > self.peak:  # only then is it worth finding out what was freed
            self._forget()
            self.peak = max(self.peak, self._live)

    def _forget(self) -> None:
        for key in [key for key, (reference, _) in self._known.items() if reference.expired()]:
            self._live -= self._known.pop(key)[1]


def _address(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def available_bytes() -> int:
    """Bytes that this process can still take: the least of all limits that it is under."""
    with warnings.catch_warnings():  # psutil warns where a container hides how much was swapped
        warnings.simplefilter("ignore")
        system = psutil.virtual_memory().available + psutil.swap_memory().free
    return max(0, min((system, *_left_in_cgroups(), *_left_in_address_space())))


def _left_in_cgroups() -> Iterator[int]:
    """What each control group of this process, and each of their parents, leaves; caches of files can be dropped."""
    if not OWN_CGROUPS.is_file():
        return
    for line in OWN_CGROUPS.read_text().splitlines():
        _, controllers, own = line.split(":", 2)
        if not controllers:  # version 2
            folder, names = CGROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            folder, names = (
                CGROUPS / "memory",
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            )
        else:
            continue
        path = folder / own.strip("/")
        for group in (path, *(parent for parent in path.parents if parent == folder or folder in parent.parents)):
            left = _left_in(group, *names)
            if left is not None:
                yield left


def _left_in(group: Path, limit: str, usage: str, cache: str) -> int | None:
    """Bytes below the limit of one control group; None where it has none, or is not to be seen in a container."""
    try:
        most = (group / limit).read_text().strip()
        if most == "max":
            return None
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(most) - int((group / usage).read_text()) + int(stat.get(cache, 0))
    except (OSError, ValueError):
        return None


def _left_in_address_space() -> Iterator[int]:
    """What ``ulimit -v`` leaves, where there is such a limit."""
    try:
        import resource

        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        if most != resource.RLIM_INFINITY:
            yield most - int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError):
        return


def _size(nbytes: int) -> str:
    """Bytes as people read them.

    >>> _size(3 * 2**29), _size(5 * 2**20)
    ('1.5 GiB', '5 MiB')
    """
    return f"{nbytes / 2**30:.3g} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.3g} MiB"
