"""The canonical graph: compound operators taken apart until integer kernels exist for what is left.

Each form computes the same function as what it replaces, and proves it: after every step the graph is compared with
the module on real samples. A step that changed the function is undone, and said. All of this happens before
quantization, because a range has to be taken of every intermediate that an integer kernel will round.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch.export import ExportedProgram
from torch.fx import GraphModule

from pipeline.core import Model, StageError, first_line
from pipeline.models.capture import capture, example_inputs, fixed_batch_size
from pipeline.models.plain_forms import views_to_reshapes
from pipeline.stages.quantize.graph.capabilities import aten
from pipeline.stages.quantize.graph.equality import difference_db
from pipeline.stages.quantize.graph.forms.attention import attention, baddbmm
from pipeline.stages.quantize.graph.forms.batch_norms import BATCH_NORM, batch_norms_to_operators
from pipeline.stages.quantize.graph.forms.biases import numbers_to_biases
from pipeline.stages.quantize.graph.forms.cells import gru_cell, lstm_cell, rnn_cell
from pipeline.stages.quantize.graph.forms.choices import numbers_to_tensors
from pipeline.stages.quantize.graph.forms.constants import compute_constants
from pipeline.stages.quantize.graph.forms.hardsigmoid import hardsigmoid
from pipeline.stages.quantize.graph.forms.identities import remove_identities
from pipeline.stages.quantize.graph.forms.masks import masks_to_choices, scores_reach_mask
from pipeline.stages.quantize.graph.forms.padding import lowest_pads, number_paddings, pads_to_readers
from pipeline.stages.quantize.graph.forms.reciprocals import multiply_by_reciprocals
from pipeline.stages.quantize.graph.forms.silu import silu
from pipeline.stages.quantize.graph.nodes import give_keys, layer_name

logger = logging.getLogger(__name__)

ATTENTION = aten.scaled_dot_product_attention.default

Rewrite = Callable[[GraphModule], int]
"""Edits a graph in place so that it computes the same; returns how many places it changed."""

REWRITES: tuple[Rewrite, ...] = (
    compute_constants,
    remove_identities,
    multiply_by_reciprocals,
    number_paddings,
    lowest_pads,
    pads_to_readers,
    batch_norms_to_operators,
    numbers_to_biases,
    numbers_to_tensors,
)
"""In the order in which they run, behind the masks: constants first, since a weight that was computed can then fold."""

SAMPLES = 4
"""Samples on which a step is checked."""


def canonical_graph(
    model: Model, program: ExportedProgram | None = None, *, inputs: tuple[Tensor, ...] | None = None
) -> GraphModule:
    """The module as a functional ATen graph without batch norms, recurrent cells, attention, SiLU or hardsigmoid.

    Args:
        program: The module as captured by the caller, where more than the batch is to stay dynamic.
        inputs: Real samples ``(N, …)`` on which every step is checked; the model's examples where they are left out.

    Raises:
        StageError: torch.export cannot trace the module, the graph is another function than the module, or a batch
            norm cannot become part of a layer.
    """
    examples = inputs or model.examples
    program = program or capture(model.module, model.inputs, examples=examples, dynamic=model.dynamic)
    samples = _few(inputs or example_inputs(model.examples or model.inputs, SAMPLES), program)
    graph = _decomposed(program, model, samples)
    masks: Rewrite = partial(masks_to_choices, samples=samples)
    for rewrite in (masks, *REWRITES):
        graph = _checked(rewrite, graph, samples)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    _require_no_batch_norm(graph)
    give_keys(graph)
    return copy.deepcopy(graph)  # the module's own tensors stay out of it: training changes the graph's


def decompositions() -> dict[Any, Callable[..., Any]]:
    """How compound ATen operators are taken apart; recurrent layers are unrolled over time."""
    return {
        **get_decompositions([aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input]),
        aten.lstm_cell.default: lstm_cell,
        aten.gru_cell.default: gru_cell,
        aten.rnn_tanh_cell.default: rnn_cell(torch.tanh),
        aten.rnn_relu_cell.default: rnn_cell(torch.relu),
        aten.silu.default: silu,
        aten.hardsigmoid.default: hardsigmoid,
        ATTENTION: attention,
        aten.baddbmm.default: baddbmm,
    }


def _require_no_batch_norm(graph: GraphModule) -> None:
    """Refuse a batch norm that is still there: integers would be put around something that no kernel computes."""
    left = graph.graph.find_nodes(op="call_function", target=BATCH_NORM)
    if left:
        raise StageError(
            "batch norms cannot be folded: the network multiplies float32's own rounding until its outputs show it",
            where=layer_name(left[0]),
            fix="give weights whose running variances belong to these samples; a variance near zero is the usual cause",
        )


def _few(inputs: tuple[Tensor, ...], program: ExportedProgram) -> tuple[Tensor, ...]:
    """As many samples as a check needs, or the one batch size that the program takes."""
    size = fixed_batch_size(program) or SAMPLES
    return tuple(value[:size] for value in inputs)


def _decomposed(program: ExportedProgram, model: Model, samples: tuple[Tensor, ...]) -> GraphModule:
    """The program with compound operators taken apart; those whose parts are another function stay whole."""
    ways = decompositions()
    graph = _apart(program, ways)
    if program.graph.find_nodes(op="call_function", target=ATTENTION) and scores_reach_mask(graph, samples):
        logger.warning("attention is not taken apart: some scores are as low as masked ones")
        del ways[ATTENTION]
        graph = _apart(program, ways)
    if difference_db(model.module, graph, samples) is None:
        return graph
    for operator in list(ways):
        fewer = {each: way for each, way in ways.items() if each is not operator}
        graph = _apart(program, fewer)
        if difference_db(model.module, graph, samples) is None:
            logger.warning("%s is not taken apart: its parts compute something else here", operator)
            return graph
    raise StageError(
        "its graph, as torch.export captures it, computes something else than the module on the same samples",
        where=type(model.module).__name__,
        fix="make forward a function of its inputs: no random numbers, no state, no sizes taken from an example",
    )


def _apart(program: ExportedProgram, ways: dict[Any, Callable[..., Any]]) -> GraphModule:
    graph: GraphModule = program.run_decompositions(ways).module(check_guards=False)
    views_to_reshapes(graph.graph)
    graph.recompile()
    return graph


def _checked(rewrite: Rewrite, graph: GraphModule, samples: tuple[Tensor, ...]) -> GraphModule:
    """The graph after a rewrite, or as it was where the rewrite failed or changed its function."""
    before = copy.deepcopy(graph)
    try:
        count = rewrite(graph)
        graph.recompile()
        logger.debug("%s: %d places", _name(rewrite), count)
        found = difference_db(before, graph, samples) if count else None
    except Exception as error:  # a graph that the rewrite does not expect; without it, some operators stay in float
        logger.warning("%s is left out: it fails on this network (%s)", _name(rewrite), first_line(error))
        return before
    if found is None:
        return graph
    logger.warning("%s is undone: it changed the network's outputs (%.1f dB)", _name(rewrite), found)
    return before


def _name(rewrite: Rewrite) -> str:
    return str(getattr(rewrite, "func", rewrite).__name__)
