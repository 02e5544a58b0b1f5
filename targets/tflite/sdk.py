"""LiteRT and its converter, imported when needed and without their noise."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STDERR = 2


class NativeLog:
    """What C++ code wrote to the terminal while it was silenced; filled in when `quiet` ends."""

    text = ""


@contextmanager
def quiet() -> Iterator[NativeLog]:
    """Silence log lines and warnings about the converter and the runtime, not about the user's model.

    LiteRT and MLIR write to the process's standard error from C++, past Python's logging, so the file descriptor
    itself is redirected. Errors are raised; their explanation is in the log that this yields.
    """
    log = NativeLog()
    loggers = [logging.getLogger(name) for name in ("root", "torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    sys.stderr.flush()
    terminal = os.dup(STDERR)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), STDERR)
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield log
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            sys.stderr.flush()
            os.dup2(terminal, STDERR)
            os.close(terminal)
            held_back.seek(0)
            log.text = held_back.read().decode(errors="replace")


def litert_torch() -> Any:
    """The converter from PyTorch, with its progress lines switched off (importing it takes seconds).

    It moves what it can of a network to NHWC, but does not know that its own barrier fits any layout: between two
    transposes, each barrier would cost a copy of its tensor there and back.
    """
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    with quiet():
        import litert_torch
        from litert_torch._convert.fx_passes.optimize_layout_transposes_pass.layout_rewrite import noop, rewriters
        from litert_torch.backend.optimization_barrier import optimization_barrier_op
    rewriters[optimization_barrier_op] = noop
    return litert_torch
