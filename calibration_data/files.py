"""Writing data: compressed archives, and the manifest that says where they come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray[Any, Any]]


def write(folder: Path, about: Mapping[str, Any], archives: Mapping[str, Arrays]) -> None:
    """Write ``NAME.npz`` for each archive, and ``manifest.json``: what they are, their sizes, hashes and arrays."""
    files = {}
    for name, arrays in archives.items():
        path = folder / f"{name}.npz"
        np.savez_compressed(path, allow_pickle=False, **arrays)
        files[path.name] = {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size_bytes": path.stat().st_size,
            "arrays": {key: {"shape": list(array.shape), "dtype": str(array.dtype)} for key, array in arrays.items()},
        }
    (folder / "manifest.json").write_text(json.dumps({**about, "files": files}, indent=2) + "\n")
