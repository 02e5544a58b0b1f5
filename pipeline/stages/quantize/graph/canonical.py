"""The canonical graph: compound operators are decomposed into operators that have integer kernels.

Each form computes the same function as what it replaces. All of this happens before quantization, because every
intermediate value that an integer kernel rounds needs a range.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch._decomp import get_decompositions
from torch.export import ExportedProgram
from torch.fx import GraphModule

from pipeline.core import Model
from pipeline.models.capture import capture
from pipeline.stages.quantize.graph.capabilities import aten
from pipeline.stages.quantize.graph.forms.attention import attention
from pipeline.stages.quantize.graph.forms.batch_norms import batch_norms_to_convolutions, fold_batch_norms
from pipeline.stages.quantize.graph.forms.biases import numbers_to_biases
from pipeline.stages.quantize.graph.forms.hardsigmoid import hardsigmoid
from pipeline.stages.quantize.graph.forms.reciprocals import multiply_by_reciprocals
from pipeline.stages.quantize.graph.forms.silu import silu
from pipeline.stages.quantize.graph.nodes import give_keys

logger = logging.getLogger(__name__)

Rewrite = Callable[[GraphModule], int]
"""Edits a graph in place so that it computes the same; returns how many places it changed."""

REWRITES: tuple[Rewrite, ...] = (
    multiply_by_reciprocals,
    batch_norms_to_convolutions,
    fold_batch_norms,
    numbers_to_biases,
)
"""In the order in which they run: batch norms that cannot fold become convolutions before the others are folded."""


def canonical_graph(model: Model, program: ExportedProgram | None = None) -> GraphModule:
    """The module as a functional ATen graph without batch norms, recurrent cells, attention, SiLU or hardsigmoid.

    Args:
        program: The module as captured by the caller, if more than the batch must stay dynamic.

    Raises:
        StageError: torch.export cannot trace the module.
    """
    program = program or capture(model.module, model.inputs)
    graph: GraphModule = program.run_decompositions(decompositions()).module(check_guards=False)
    for rewrite in REWRITES:
        logger.debug("%s: %d places", rewrite.__name__, rewrite(graph))
    graph.graph.eliminate_dead_code()
    graph.recompile()
    give_keys(graph)
    return graph


def decompositions() -> dict[Any, Callable[..., Any]]:
    """How compound ATen operators are decomposed; LSTM and GRU are unrolled over time."""
    return {
        **get_decompositions([aten.lstm.input, aten.gru.input]),
        aten.silu.default: silu,
        aten.hardsigmoid.default: hardsigmoid,
        aten.scaled_dot_product_attention.default: attention,
    }
