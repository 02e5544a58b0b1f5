"""Files of weights: what ``.safetensors`` and torch files hold, read so that nothing in them runs.

A torch file is a pickle. torch's restricted reader builds tensors and plain values only. An object of any other class,
such as a NumPy number or ``argparse.Namespace``, becomes a `StandIn`, which knows nothing but the name of its class.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from pipeline.core import CheckpointError, first_line
from pipeline.core.files import read_small, require_file
from pipeline.machine.memory import require_memory

SAVE = "save weights only: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"

MAX_CLASSES = 200
"""Of objects beside the weights that one file may name."""
MAX_INDEX_BYTES = 1 << 26

_DICTIONARIES = ("collections.defaultdict",)
"""Classes whose objects are read as plain dictionaries."""


class StandIn:
    """An object in a torch file whose class is not known to be harmless. Nothing of the class is imported or called."""

    of = "an object"

    def __new__(cls, *_: Any, **__: Any) -> StandIn:
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        """Forget what the object held."""


def read_weights(path: Path) -> Any:
    """What a file holds: for ``.safetensors`` a flat dictionary of tensors, for a torch file whatever was saved.

    An index of shards (``model.safetensors.index.json``) stands for all its files.

    Raises:
        CheckpointError: It is damaged, of another kind, or a pickle that needs code to run.
    """
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    if path.suffix == ".safetensors" and not _is_zip(path):
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"is not a safetensors file: {error}", where=str(path), fix=SAVE) from None
    return _read_torch_file(path)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as opened:
        return opened.read(4) == b"PK\x03\x04"


def _read_shards(path: Path) -> dict[str, Any]:
    """The tensors of all files that an index names; they lie beside it."""
    fix = "give the index that save_pretrained wrote, beside its files"
    try:
        index = json.loads(read_small(path, MAX_INDEX_BYTES))
        names = sorted({str(name) for name in index["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"is not an index of shards: {type(error).__name__}: {first_line(error)}"
        raise CheckpointError(problem, where=str(path), fix=fix) from None
    if not names or any(Path(name).name != name or name.endswith(".json") for name in names):
        raise CheckpointError("names no files beside itself", where=str(path), fix=fix)
    for name in names:
        require_file(path.parent / name, CheckpointError)
    size = sum((path.parent / name).stat().st_size for name in names)
    require_memory(f"loading {path}", 2 * size, fix="close other programs, or use a larger machine")
    tensors: dict[str, Any] = {}
    for name in names:
        shard = read_weights(path.parent / name)
        if not isinstance(shard, dict):
            raise CheckpointError("holds no dictionary of tensors", where=str(path.parent / name), fix=fix)
        tensors.update(shard)
    return tensors


def _read_torch_file(path: Path) -> Any:
    unknown: set[str] = set()
    with suppress(Exception):  # an old file, which has no list to read ahead, or a damaged one: reading it tells
        unknown |= set(get_unsafe_globals_in_checkpoint(str(path)))
    while True:
        try:
            with warnings.catch_warnings(action="ignore"), safe_globals(_stand_ins(unknown)):
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch's reader fails in many ways on what is no checkpoint
            name = re.search(r"GLOBAL (\S+)", str(error))
            if name is None or "blocked" in str(error) or name[1] in unknown or len(unknown) >= MAX_CLASSES:
                raise _refusal(path, error, name[1] if name else None) from None
            unknown |= {name[1], f"builtins.{name[1]}"}


def _refusal(path: Path, error: Exception, name: str | None) -> CheckpointError:
    if name is not None:
        return CheckpointError(f"holds pickled code, which is never run ({name})", where=str(path), fix=SAVE)
    if "Weights only load failed" in str(error) or "reduce" in str(error):
        problem = "is not a torch checkpoint, or holds pickled code, which is never run"
        return CheckpointError(problem, where=str(path), fix=SAVE)
    return CheckpointError(f"is not a torch checkpoint: {first_line(error)}", where=str(path), fix=SAVE)


def _stand_ins(names: Iterable[str]) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Per class that a file names, what is built in its place."""
    return [
        (_plain_dictionary if name in _DICTIONARIES else type("StandIn", (StandIn,), {"of": name}), name)
        for name in sorted(names)
    ]


def _plain_dictionary(*_: object) -> dict[Any, Any]:
    return {}
