"""``conv(x) + c`` with a number c becomes a convolution whose bias includes c: one operator and one rounding less.

Hardsigmoid gates of squeeze-and-excite contain such sums. If something else also reads the convolution's result, the
sum stays.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from pipeline.stages.quantize.graph.capabilities import WEIGHTED, aten
from pipeline.stages.quantize.graph.nodes import add_parameter, argument, channel_axis, tensor_of


def numbers_to_biases(graph: GraphModule) -> int:
    """Move every such number into a bias, in place; return how many."""
    count = 0
    for node in list(graph.graph.nodes):
        if node.target != aten.add.Tensor or isinstance(node.args[1], Node) or node.kwargs:
            continue
        source, number = node.args
        if source.target not in WEIGHTED or len(source.users) > 1:
            continue
        channels = node.meta["val"].shape[channel_axis(source.target)]
        bias = argument(source, 2)
        with graph.graph.inserting_before(source):
            held = torch.zeros(channels) if bias is None else tensor_of(graph, bias)
            source.args = (*source.args[:2], add_parameter(graph, f"{node.name}_bias", held + number), *source.args[3:])
        node.replace_all_uses_with(source)
        graph.graph.erase_node(node)
        count += 1
    return count
