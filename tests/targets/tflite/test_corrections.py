"""What the converter got wrong: each network is converted as it is deployed, run in LiteRT and compared with torch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.core import TargetError
from targets.tflite import TfliteTarget, flatbuffer
from targets.tflite.session import LitertSession
from tests.targets.tflite.programs import QuantizedConv, model, through_int8

SHAPE = (3, 7, 6)


class AfterConv(nn.Module):
    """What a function makes of a convolution's eight channels, in float or in steps of 0.1."""

    def __init__(self, function, *, quantized=False):
        super().__init__()
        self.conv = QuantizedConv() if quantized else nn.Conv2d(3, 8, 3, padding=1)
        self.function = function

    def forward(self, x):
        return self.function(self.conv(x))


def outputs(module, x, tmp_path, *, quantized):
    """The module's outputs and those of its file, for one sample."""
    target = TfliteTarget()
    made = model(module, tuple(x.shape[1:]), quantized=quantized)
    expected = module(x)
    expected = expected if isinstance(expected, tuple) else (expected,)
    made = replace(made, outputs=tuple(f"output_{index}" for index in range(len(expected))))
    lowered = target.lower(made, tmp_path, name="model")
    found = target.load(lowered, threads=1).run((x.numpy(),))
    return [each.detach().numpy() for each in expected], found, lowered


def image():
    return torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))


def reduced(x):
    return x.mean((2, 3))[:, :, None, None]


class SharedKeys(nn.Module):
    """Attention of two heads that share their keys and values, which are expanded to both."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        query = self.query(x).view(-1, 6, 2, 4).transpose(1, 2)
        shared = (each(x).view(-1, 6, 1, 4).transpose(1, 2)[:, :, None] for each in (self.key, self.value))
        key, value = (each.expand(-1, 1, 2, 6, 4).reshape(-1, 2, 6, 4) for each in shared)
        mask = torch.ones(6, 6, dtype=torch.bool).tril()
        return F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).reshape(-1, 6, 8)


def test_heads_that_share_keys_read_them(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(1, 6, 8)
    (expected,), (found,), _ = outputs(SharedKeys().eval(), x, tmp_path, quantized=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)


FLOAT = {
    "nearest, half": lambda x: F.interpolate(x, scale_factor=0.5),
    "nearest, 1.5 times": lambda x: F.interpolate(x, scale_factor=1.5),
    "nearest, two sizes": lambda x: F.interpolate(x, size=(5, 13)),
    "nearest exact": lambda x: F.interpolate(x, size=(13, 4), mode="nearest-exact"),
    "expand_as before a product": lambda x: x * reduced(x).expand_as(x),
    "expand before a concatenation": lambda x: torch.cat([x, reduced(x).expand(-1, -1, 7, 6)], 1),
    "repeat": lambda x: x.repeat(1, 1, 2, 1),
    "a number minus": lambda x: 1 - x,
    "a tensor minus a clamp": lambda x: torch.arange(8.0)[:, None, None] - F.relu(x),
    "a number divided by": lambda x: 2 / (x.abs() + 1),
    "a tensor divided by": lambda x: torch.arange(8.0)[:, None, None] / (1.5 + x.sigmoid()),
    "bicubic": lambda x: F.interpolate(x, size=(11, 9), mode="bicubic"),
}


@pytest.mark.parametrize("name", FLOAT)
def test_a_float_file_equals_the_module(name, tmp_path):
    (expected,), (found,), _ = outputs(AfterConv(FLOAT[name]).eval(), image(), tmp_path, quantized=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def int8(function, zero_point=-128):
    """In steps of 0.1, as the convolution's results are."""
    return lambda x: through_int8(function(x), 0.1, zero_point)


INTEGERS = {
    "nearest, 1.5 times": int8(lambda x: F.interpolate(x, scale_factor=1.5)),
    "expand before a product": int8(lambda x: x * through_int8(reduced(x), 0.1, -128).expand(-1, -1, 7, 6)),
    "bicubic": int8(lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), -100),
    "one value, three readers": lambda x: (x, x.argmax(2), through_int8(x.sum(2), 0.2, -128)),
    "a choice of a value off the grid": int8(lambda x: torch.where(x > 1.05, x, -20.0).clamp(0, 20).softmax(1)),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_a_file_of_integers_equals_the_program(name, tmp_path):
    module = AfterConv(INTEGERS[name], quantized=True).eval()
    expected, found, _ = outputs(module, image(), tmp_path, quantized=True)
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape
        difference = np.abs(one - other)
        assert (
            np.mean(difference > 1e-5) < 0.05
        )  # the biases are not on the accumulators' grid: a few values round apart
        assert one.dtype.kind == "i" or difference.max() < 0.21  # a step


class Attention(nn.Module):
    """Queries, keys and values are the input itself, in steps of 0.05; the last two of four tokens are hidden."""

    def __init__(self, mask, *, quantized):
        super().__init__()
        self.register_buffer("mask", mask)
        self.quantized = quantized

    def forward(self, x):
        if not self.quantized:
            return F.scaled_dot_product_attention(x, x, x, attn_mask=self.mask)
        x = through_int8(x, 0.05, 0)
        scores = through_int8(x @ x.transpose(-2, -1), 0.1, 0)
        shares = through_int8(torch.where(self.mask, scores, -1e4).softmax(-1), 1 / 256, -128)
        return through_int8(shares @ x, 0.05, 0)


def test_hidden_tokens_have_no_effect_on_integers(tmp_path):
    visible = torch.tensor([True, True, False, False]).expand(4, 4)
    x = torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[:, :, 2:] = -3
    (expected,), (found,), lowered = outputs(Attention(visible, quantized=True), x, tmp_path, quantized=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    (moved,) = TfliteTarget().load(lowered, threads=1).run((other.numpy(),))
    np.testing.assert_array_equal(moved[:, :, :2], found[:, :, :2])


@pytest.mark.parametrize("hidden", [False, float("-inf")], ids=["bool", "additive"])
def test_a_query_that_may_look_at_nothing_gives_zeros(hidden, tmp_path):
    mask = torch.tensor([[True, True, False], [False] * 3, [True] * 3])
    mask = mask if hidden is False else torch.zeros(3, 3).masked_fill(~mask, hidden)
    x = torch.randn(1, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    (expected,), (found,), _ = outputs(Attention(mask, quantized=False), x, tmp_path, quantized=False)
    assert not expected[:, :, 1].any()
    np.testing.assert_allclose(found, expected, atol=1e-5)


TRANSPOSED = {
    "padding and output padding": {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    "groups": {"kernel_size": 4, "stride": 2, "padding": 1, "groups": 2},
    "depthwise": {"kernel_size": 2, "stride": 2, "groups": 4},
    "dilation": {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2},
    "two strides": {"kernel_size": (3, 5), "stride": (1, 3), "padding": (0, 4), "output_padding": (0, 2)},
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions_of_any_form_equal_torch_also_in_a_row(name, tmp_path):
    torch.manual_seed(0)
    first, second = nn.ConvTranspose2d(4, 8, **TRANSPOSED[name]), nn.ConvTranspose2d(8, 4, **TRANSPOSED[name])
    module = nn.Sequential(first, nn.ReLU(), second).eval()
    (expected,), (found,), _ = outputs(module, torch.randn(1, 4, 5, 6), tmp_path, quantized=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)


class QuantizedTransposed(nn.Module):
    """A transposed convolution with a ReLU; x in steps of 0.05, y of 0.0937, weights of 1/64."""

    def __init__(self, groups):
        super().__init__()
        self.groups = groups
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randint(-127, 128, (4, 8 // groups, 3, 3), generator=generator) / 64)
        self.bias = nn.Parameter(torch.arange(8.0) * 0.05 / 64)
        self.register_buffer("scales", torch.full((8 // groups,), 1 / 64))
        self.register_buffer("zero_points", torch.zeros(8 // groups, dtype=torch.int64))

    def forward(self, x):
        ops = torch.ops.quantized_decomposed
        settings = (self.scales, self.zero_points, 1, -127, 127, torch.int8)
        weight = ops.dequantize_per_channel.default(ops.quantize_per_channel.default(self.weight, *settings), *settings)
        y = F.conv_transpose2d(through_int8(x, 0.05, 3), weight, self.bias, 2, 1, 1, self.groups)
        return through_int8(F.relu(y), 0.0937, -128)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_transposed_convolution_of_integers_stays_in_integers(groups, tmp_path):
    x = torch.randn(1, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    (expected,), (found,), lowered = outputs(QuantizedTransposed(groups), x, tmp_path, quantized=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    tensors = flatbuffer.read_model(lowered.path.read_bytes()).subgraphs[0].tensors
    assert "FLOAT32" not in {flatbuffer.dtype_name(tensor) for tensor in tensors}


def test_complex_numbers_are_refused_by_the_operators_name(tmp_path):
    class Spectrogram(nn.Module):
        def forward(self, x):
            return torch.stft(x, 16, window=torch.hann_window(16), return_complex=True).abs()

    with pytest.raises(TargetError, match=r"aten\.stft.* gives complex numbers"):
        TfliteTarget().lower(model(Spectrogram(), (64,), quantized=False), tmp_path, name="model")


@pytest.mark.parametrize("reference_kernels", [False, True])
def test_sums_of_integers_are_right_in_every_kernel(tmp_path, reference_kernels):
    class Summed(nn.Module):
        def forward(self, x):
            return through_int8(through_int8(x, 0.5, 3).sum(1), 0.25, -7)

    x = np.array([[[1.0, -2.0], [0.5, 4.0], [3.0, 0.5]]], np.float32)
    lowered = TfliteTarget().lower(model(Summed(), (3, 2), quantized=True), tmp_path, name="model")
    (found,) = LitertSession(lowered.path, reference_kernels=reference_kernels).run((x,))
    np.testing.assert_array_equal(found, [[4.5, 2.5]])
