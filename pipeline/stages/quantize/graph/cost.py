"""Where a quantized program spends its multiply-accumulates."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models.capture import Examples, example_inputs


def integer_share(program: GraphModule, inputs: Examples) -> float:
    """Share of multiply-accumulates whose operands are all dequantized integers, in [0, 1]; 1 where there are none."""
    counter = _MacsByNode(program)
    with torch.no_grad():
        counter.run(*example_inputs(inputs))
    total = sum(counter.macs.values())
    integer = sum(macs for node, macs in counter.macs.items() if _is_integer(node))
    return integer / total if total else 1.0


def _is_integer(node: Node) -> bool:
    operands = node.all_input_nodes[:2]
    return all("dequantize_per" in str(operand.target) for operand in operands)


class _MacsByNode(Interpreter):
    def __init__(self, program: GraphModule) -> None:
        super().__init__(program)
        self.macs: dict[Node, int] = {}

    def run_node(self, n: Node) -> Any:
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(n)
        if counter.get_total_flops():
            self.macs[n] = int(counter.get_total_flops()) // 2
        return result
