"""What the tests of bounded calls run in the child: results, mistakes, crashes, and requests for too much."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core import CheckpointError


def results(scale: float, *, names: list[str]) -> dict[str, Any]:
    return {
        "none": None,
        "flag": True,
        "number": 3,
        "ratio": 0.5,
        "text": "ä\n",
        "names": names,
        "pair": (1, [2.0]),
        "array": np.arange(6, dtype=np.int8).reshape(2, 3) * np.int8(scale),
        "scalar": np.float32(1.5),
        "infinity": float("inf"),
    }


def segmentation_fault() -> None:
    ctypes.string_at(0)


def abort() -> None:
    os.abort()


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def exits() -> None:
    os._exit(3)


def system_exit() -> None:
    sys.exit("no")


def users_mistake() -> None:
    raise CheckpointError("is damaged", where="m.onnx", fix="write it again")


def surprise() -> None:
    raise KeyError("a")


def sleeps(marker: Path) -> None:
    subprocess.Popen(["sh", "-c", f"sleep 3; touch {marker}"])  # the child's own child is stopped with it
    time.sleep(60)


def writes_its_number(path: Path) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(str(os.getpid()))
    partial.rename(path)
    time.sleep(60)


def endless_loop() -> None:
    while True:
        pass


def allocate(count: int) -> int:
    return len(np.ones(count, np.uint8))


def allocate_with_new() -> None:
    """What C++ libraries do: an allocation fails with ``std::bad_alloc``, which nothing catches."""
    sys.stderr.write("terminate called after throwing an instance of 'std::bad_alloc'\n")
    sys.stderr.flush()
    os.abort()


def write(path: Path, count: int) -> None:
    with path.open("wb") as file:
        file.truncate(count)


def talks() -> str:
    print("to stdout")
    os.write(2, b"to stderr, from below Python\n")
    return "done"


def floods() -> None:
    for _ in range(1 << 10):
        os.write(1, b"x" * 1023 + b"\n")
    os.write(1, b"the end")


def limits() -> dict[str, tuple[int, int]]:
    return {name: resource.getrlimit(getattr(resource, name)) for name in ("RLIMIT_CORE", "RLIMIT_FSIZE")}


def objects() -> object:
    return object()


def imported_modules() -> list[str]:
    return sorted(name for name in sys.modules if "." not in name)
