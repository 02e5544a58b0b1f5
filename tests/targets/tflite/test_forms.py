import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.models.capture import capture, example_inputs
from targets.tflite.forms import aten, rewrite
from tests.targets.tflite.programs import QuantizedConv, model, through_int8

SHAPE = (8, 10, 10)
STEP = 0.03


class Activation(nn.Module):
    """``function`` between int8 tensors, then whatever ``then`` does with its result."""

    def __init__(self, function, then=None, zero_point=-100):
        super().__init__()
        self.function, self.then, self.zero_point = function, then, zero_point

    def forward(self, x):
        y = through_int8(self.function(through_int8(x, 0.05, 3)), STEP, self.zero_point)
        return y if self.then is None else self.then(y)


def captured(module):
    return capture(module.eval(), model(module, SHAPE, quantized=True).inputs, batch_size=1).module()


def rewritten(module, goal="cpu"):
    program = captured(module)
    rewrite(program, goal)
    return program


def targets(program):
    return [node.target for node in program.graph.nodes if node.op == "call_function"]


def inputs():
    return tuple(3 * x for x in example_inputs(model(nn.Identity(), SHAPE, quantized=True).inputs))


@pytest.mark.parametrize("function", [F.hardswish, lambda y: F.hardswish(y, inplace=True)], ids=["pure", "in place"])
def test_rewrite_holds_hardswish_in_float_with_equal_values_when_the_goal_is_a_cpu(function):
    module = Activation(function)
    program = rewritten(module)
    assert any("barrier" in str(target) for target in targets(program))
    assert torch.equal(program(*inputs()), module(*inputs()))
    assert targets(rewritten(module, goal="npu")) == targets(captured(module))


def test_rewrite_pads_a_max_pool_with_zeros_only_when_no_value_is_negative():
    pool = lambda y: through_int8(F.max_pool2d(y, 3, 2, 1), STEP, -128)  # noqa: E731
    positive = Activation(F.relu, pool, zero_point=-128)
    assert aten.constant_pad_nd.default in targets(rewritten(positive))
    assert torch.equal(rewritten(positive)(*inputs()), positive(*inputs()))
    above = Activation(F.relu, lambda y: through_int8(F.max_pool2d(y, 3, 2, 1), STEP, -100), zero_point=-100)
    assert aten.constant_pad_nd.default in targets(rewritten(above))
    assert torch.equal(rewritten(above)(*inputs()), above(*inputs()))
    signed = Activation(F.tanh, pool, zero_point=-100)
    assert aten.constant_pad_nd.default not in targets(rewritten(signed))


@pytest.mark.parametrize(
    "pool", [lambda y: F.avg_pool2d(y, 2), lambda y: F.avg_pool2d(y, 3, 2, 1)], ids=["2", "3 s2 p1"]
)
def test_rewrite_makes_an_average_pool_a_convolution_with_the_same_values(pool):
    module = Activation(pool)
    program = rewritten(module)
    assert aten.avg_pool2d.default not in targets(program)
    assert (program(*inputs()) - module(*inputs())).abs().max() <= STEP * 1.001
    assert aten.avg_pool2d.default in targets(rewritten(module, goal="npu"))


def test_rewrite_leaves_an_average_pool_alone_when_its_padding_does_not_count():
    module = Activation(lambda y: F.avg_pool2d(y, 3, 2, 1, count_include_pad=False))
    assert aten.avg_pool2d.default in targets(rewritten(module))


def test_rewrite_changes_nothing_when_the_program_is_float():
    module = nn.Sequential(nn.Hardswish(), nn.AvgPool2d(2), nn.ReLU())
    assert targets(rewritten(module)) == targets(captured(module))


@pytest.mark.parametrize(("size", "channels"), [((10, 10), 3), ((9, 12), 1), ((8, 6), 4)])
def test_rewrite_pairs_the_pixels_of_a_strided_first_convolution_with_equal_values(size, channels):
    module = QuantizedConv(channels, 8, stride=2)
    specs = model(module, (channels, *size), quantized=True).inputs
    program = capture(module.eval(), specs, batch_size=1).module()
    assert rewrite(program, "cpu").for_cpus == {"conv2d": 1}
    (x,) = example_inputs(specs)
    assert torch.equal(program(3 * x), module(3 * x))
    (conv,) = [node for node in program.graph.nodes if node.target is aten.conv2d.default]
    assert conv.args[3] == [2, 1]


@pytest.mark.parametrize(
    ("module", "shape", "goal"),
    [
        (QuantizedConv(3, 8, stride=1), (3, 10, 10), "cpu"),
        (QuantizedConv(3, 8, stride=2), (3, 10, 9), "cpu"),
        (QuantizedConv(8, 8, stride=2), (8, 10, 10), "cpu"),
        (QuantizedConv(3, 8, stride=2), (3, 10, 10), "npu"),
    ],
    ids=["no stride", "odd width", "many channels", "npu"],
)
def test_rewrite_does_not_pair_pixels_when_it_gains_nothing(module, shape, goal):
    program = capture(module.eval(), model(module, shape, quantized=True).inputs, batch_size=1).module()
    assert not any(rewrite(program, goal))


class Attention(nn.Module):
    """Scores, a softmax and the product with the values, each through int8; ``(1, 8, 10, 10)`` as queries and keys."""

    def forward(self, x):
        q = through_int8(x, 0.05, 3)
        keys = through_int8(q.transpose(2, 3), 0.05, 3)
        scores = through_int8(through_int8(q * 0.37, 0.02, 3) @ keys, 0.25, -3)
        weights = through_int8(scores.softmax(-1), 1 / 256, -128)
        return through_int8(F.gelu(through_int8(weights @ q, 0.02, 0)), 0.02, -100)


def test_rewrite_holds_attention_behind_barriers_with_equal_values():
    program = rewritten(Attention())
    assert torch.equal(program(*inputs()), Attention()(*inputs()))
    held = [node.args[0][0].target for node in program.graph.nodes if "barrier" in str(node.target)]
    products = [aten.matmul.default, aten.matmul.default]
    assert sorted(map(str, held)) == sorted(map(str, [aten.mul.Tensor, aten.softmax.int, aten.gelu.default, *products]))
    assert not [target for target in targets(rewritten(Attention(), goal="npu")) if "barrier" in str(target)]


def test_rewrite_leaves_a_factor_in_int8_when_no_matrix_product_reads_it():
    program = rewritten(Activation(lambda y: y * 0.37, QuantizedConv(8, 8)))
    assert not [target for target in targets(program) if "barrier" in str(target)]


class Norm(nn.Module):
    """A layer norm whose weight and bias are quantized, too."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.rand(10, generator=generator))
        self.bias = nn.Parameter(torch.randn(10, generator=generator))

    def forward(self, x):
        weight, bias = through_int8(self.weight, 0.01, -128), through_int8(self.bias, 0.02, 0)
        return through_int8(F.layer_norm(through_int8(x, 0.05, 3), (10,), weight, bias), 0.02, 3)


@pytest.mark.parametrize("goal", ["cpu", "npu"])
def test_rewrite_gives_a_norm_the_values_that_its_parameters_integers_stand_for(goal):
    program = rewritten(Norm(), goal)
    (norm,) = [node for node in program.graph.nodes if node.target is aten.layer_norm.default]
    assert [source.op for source in norm.all_input_nodes[1:]] == ["get_attr", "get_attr"]
    assert torch.equal(program(*inputs()), Norm()(*inputs()))


@pytest.mark.parametrize("keep", [True, False])
def test_rewrite_makes_a_mean_over_the_image_a_pool_with_the_same_values(keep):
    module = Activation(lambda y: y.mean((2, 3), keepdim=keep))
    program = rewritten(module)
    assert aten.mean.dim not in targets(program)
    assert torch.equal(program(*inputs()), module(*inputs()))
    assert aten.mean.dim in targets(rewritten(Activation(lambda y: y.mean((1, 2)))))
