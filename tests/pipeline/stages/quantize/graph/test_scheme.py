"""The scheme on hand-made graphs: which values share parameters, and where ranges are taken."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from pipeline.core import Model, TensorSpec
from pipeline.stages.quantize.graph.canonical import canonical_graph
from pipeline.stages.quantize.graph.capabilities import RULES
from pipeline.stages.quantize.graph.scheme import NO_SPANS, Scheme, scheme_of


class Function(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv, x)


def scheme(
    function: Callable[..., Tensor],
    shape: tuple[int, ...] = (4, 6, 6),
    skip: tuple[str, ...] = (),
    spans: Mapping[str, float] = NO_SPANS,
) -> Scheme:
    module = Function(function).eval()
    model = Model(module=module, reference=module, inputs=(TensorSpec(name="x", shape=shape),))
    return scheme_of(canonical_graph(model), skip, spans)


def sets(found: Scheme) -> dict[str, str]:
    """Each value's operator and the operator whose parameters it uses."""
    return dict(found.roots)


@pytest.mark.parametrize(
    "clamp",
    [torch.relu, nn.functional.relu6, nn.functional.hardtanh, lambda x: x.clamp(-1, 2), lambda x: x.clamp(min=0)],
    ids=["relu", "relu6", "hardtanh", "clamp", "clamp_min"],
)
def test_range_is_taken_only_after_the_clamp(clamp: Callable[[Tensor], Tensor]) -> None:
    found = sets(scheme(lambda conv, x: clamp(conv(x))))
    assert "conv2d" not in found
    assert len(found) == 2  # the input, and the clamp's result


def test_convolution_has_its_own_range_when_its_result_is_read_beside_the_clamp() -> None:
    found = sets(scheme(lambda conv, x: torch.relu(y := conv(x)) + y))
    assert found["conv2d"] == "conv2d"


def test_residual_sum_and_both_its_operands_are_quantized() -> None:
    found = sets(scheme(lambda conv, x: torch.relu(conv(x) + x)))
    assert set(found) == {"x", "conv2d", "relu"}


def test_moved_values_share_the_parameters_of_what_they_move() -> None:
    found = sets(scheme(lambda conv, x: nn.functional.max_pool2d(conv(x), 2).permute(0, 2, 3, 1).flatten(1)))
    assert {root for value, root in found.items() if value != "x"} == {"conv2d"}


def test_concatenated_values_share_one_set() -> None:
    found = sets(scheme(lambda conv, x: torch.cat([conv(x), x, torch.relu(x)], 1)))
    assert set(found.values()) == {"x"}


def test_concatenated_sigmoid_is_requantized_because_its_own_range_is_fixed() -> None:
    found = scheme(lambda conv, x: torch.cat([conv(x), torch.sigmoid(x)], 1))
    assert list(found.requantized) == [("sigmoid", "cat")]
    assert sets(found)["sigmoid"] == "sigmoid"
    assert sets(found)["cat"] == "conv2d"


@pytest.mark.parametrize(
    "move", [lambda x: x, lambda x: x[:, :2], lambda x: x[:, :, 1:].transpose(2, 3)[:, :3]], ids=["x", "slice", "both"]
)
def test_narrow_value_is_requantized_where_it_joins_a_wide_one_and_others_read_it_or_what_it_was_moved_from(
    move: Callable[[Tensor], Tensor],
) -> None:
    def joined(conv: nn.Module, x: Tensor) -> Tensor:
        return torch.cat([move(x).flatten(1), conv(x).flatten(1)], 1)

    found = scheme(joined, spans={"x": 1.0, "conv2d": 3.0})
    assert sets(found)["x"] == "x"
    assert sets(found)["cat"] == "conv2d"
    assert [consumer for _, consumer in found.requantized] == ["cat"]


def test_parts_of_a_split_share_the_parameters_of_the_whole() -> None:
    def gated(conv: nn.Module, x: Tensor) -> Tensor:
        first, second = conv(x).chunk(2, 1)
        return first * second

    found = sets(scheme(gated))
    assert {found[name] for name in found if name.startswith("getitem")} == {"conv2d"}


def test_pad_carries_the_grid_of_its_input_whatever_it_writes() -> None:
    found = sets(scheme(lambda conv, x: conv(nn.functional.pad(torch.sigmoid(x), (1, 2, 0, 1), value=-3.0))))
    assert found["pad"] == "sigmoid"


def test_pad_with_minus_infinity_stays_in_float_unless_only_max_pools_read_it() -> None:
    def pooled(_: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.max_pool2d(nn.functional.pad(x * 2, (0, 1, 0, 1), value=-torch.inf), 2)

    assert scheme(pooled).skipped == ()
    found = scheme(lambda conv, x: conv(nn.functional.pad(x, (0, 1, 0, 1), value=-torch.inf)).relu())
    assert [entry.reason for entry in found.skipped] == ["pads with a number that no grid can hold"]


def test_operator_without_a_rule_stays_in_float_and_says_so() -> None:
    found = scheme(lambda conv, x: torch.erfc(conv(x)))
    assert [entry.reason for entry in found.skipped] == ["no integer kernel for aten.erfc.default"]


def test_only_what_an_integer_operator_touches_is_quantized() -> None:
    found = scheme(lambda conv, x: torch.erfc(conv(x)).flatten(1).cumsum(1).flatten(1))
    assert set(sets(found)) == {"x", "conv2d"}


def test_skipped_module_keeps_everything_inside_it_in_float() -> None:
    found = scheme(lambda conv, x: conv(x) + 1.0, skip=("conv",))
    assert [(entry.layer, entry.reason) for entry in found.skipped] == [("conv", "left in float by the recipe")]


def test_every_operator_of_the_table_exists_once() -> None:
    operators = [each for rule in RULES for each in rule.operators]
    assert len(set(operators)) == len(operators)
    for each in operators:
        assert each is operator.getitem or each in [
            getattr(each.overloadpacket, overload) for overload in each.overloadpacket.overloads()
        ]
