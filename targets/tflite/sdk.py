"""LiteRT and its converter, imported when needed and without their noise."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from pipeline.core import EdgewrightError, TargetError, first_line
from pipeline.core.logs import Held, silenced

LONGEST_LINE = 200
SAID = (
    (r"failed to legalize operation '([^']+)'", "TFLite has no form for {}"),
    (r"Lowering not found: (\S+)", "TFLite has no form for {}"),
    (r"Didn't find op for builtin opcode '(\w+)' version '(\d+)'", "LiteRT has no kernel for {} version {}"),
)
"""What the converter and LiteRT say of operators that they do not know, and the same in words."""


@contextmanager
def quiet() -> Iterator[Held]:
    """Silence log lines and warnings about the converter and the runtime, not about the user's model.

    LiteRT and MLIR write from C++, past Python's logging. Errors are raised; what explains them was held back.
    """
    with silenced("root", "torchao", "torch.utils._pytree") as held:
        yield held


def litert_torch() -> Any:
    """The converter from PyTorch, with its progress lines switched off (importing it takes seconds), and mended.

    It moves what it can of a network to NHWC, and two things go wrong there. It does not know that its own barrier fits
    any layout: between two transposes, each barrier would cost a copy of its tensor there and back. And where several
    operators read one dequantizer, it forgets the dequantizer's layout after the first of them: the others then read
    NHWC as if it were NCHW.
    """
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    with quiet():
        import litert_torch
        from litert_torch._convert.fx_passes.optimize_layout_transposes_pass import layout_mark, pass_body
        from litert_torch._convert.fx_passes.optimize_layout_transposes_pass.layout_rewrite import noop, rewriters
        from litert_torch.backend.optimization_barrier import optimization_barrier_op
    rewriters[optimization_barrier_op] = noop
    layout_pass = pass_body.OptimizeLayoutTransposesPass
    insert = layout_pass.insert_t_q_dq
    if not hasattr(insert, "__wrapped__"):

        @wraps(insert)
        def keep_layout(self: Any, graph: Any, input_dq: Any, *rest: Any) -> Any:
            nhwc = layout_mark.is_nhwc_node(input_dq)
            inserted = insert(self, graph, input_dq, *rest)
            input_dq.meta = {**input_dq.meta, layout_mark.IS_NHWC_NODE: nhwc}
            return inserted

        layout_pass.insert_t_q_dq = keep_layout
    return litert_torch


def in_words(line: str) -> str:
    """What the converter or LiteRT says, without what it prints of its own code.

    >>> in_words("failed to legalize operation 'mhlo.convolution' that was explicitly marked illegal: %22 = ...")
    'TFLite has no form for mhlo.convolution'
    >>> in_words("Lowering not found: aten.adaptive_max_pool2d.default")
    'TFLite has no form for aten.adaptive_max_pool2d.default'
    >>> in_words("Didn't find op for builtin opcode 'STABLEHLO_SORT' version '1'. An older version might ...")
    'LiteRT has no kernel for STABLEHLO_SORT version 1'
    """
    for pattern, words in SAID:
        if found := re.search(pattern, line):
            return words.format(*found.groups())
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}..."


@contextmanager
def plain_errors(step: str) -> Iterator[None]:
    """Let every error of an SDK in this block, or in the function that this decorates, be a `TargetError` of one line.

    Args:
        step: What was done, for the message: "LiteRT cannot load it".

    Raises:
        TargetError: Something other than an `EdgewrightError` was raised.
    """
    try:
        yield
    except EdgewrightError:
        raise
    except Exception as error:  # each SDK raises its own classes
        raise TargetError(f"{step}: {in_words(first_line(error))}") from error
