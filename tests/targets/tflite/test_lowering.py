import numpy as np
import pytest
import torch
from ai_edge_litert.schema_py_generated import BuiltinOperator
from torch import nn
from torch.nn import functional as F

from pipeline.core import TargetError
from pipeline.recipe import TfliteConfig
from targets.tflite import TfliteTarget, flatbuffer, lowering
from targets.tflite.placement import CONVERTS, KEPT_REASONS
from tests.targets.tflite.programs import QuantizedConv, QuantizedLinear, model, through_int8


@pytest.fixture
def target():
    return TfliteTarget()


def tensors(path):
    return flatbuffer.read_model(path.read_bytes()).subgraphs[0].tensors


def test_lower_stores_the_integers_computed_by_hand_when_quantized(target, tmp_path):
    lowered = target.lower(model(QuantizedLinear(), (2,), quantized=True), tmp_path, name="model")
    tflite_model = flatbuffer.read_model(lowered.path.read_bytes())
    (operator,) = tflite_model.subgraphs[0].operators
    x, weight, bias = (tflite_model.subgraphs[0].tensors[index] for index in operator.inputs)
    assert flatbuffer.operator_name(tflite_model, operator) == "FULLY_CONNECTED"
    assert flatbuffer.dtype_name(x) == "INT8"
    assert (list(x.quantization.scale), list(x.quantization.zeroPoint)) == ([0.5], [0])
    # weights in steps of 0.5 and 0.25 per row; biases in steps of 0.5 * (0.5, 0.25)
    assert tflite_model.buffers[weight.buffer].data.view(np.int8).tolist() == [2, -4, 2, 1]
    assert list(weight.quantization.scale) == [0.5, 0.25]
    assert tflite_model.buffers[bias.buffer].data.view(np.int32).tolist() == [4, -8]
    assert list(bias.quantization.scale) == [0.25, 0.125]


def test_lower_leaves_no_float_tensor_when_quantized(target, tmp_path):
    lowered = target.lower(model(QuantizedConv(), (3, 9, 9), quantized=True), tmp_path, name="model")
    assert lowered.variant == "int8"
    assert {flatbuffer.dtype_name(tensor) for tensor in tensors(lowered.path)} == {"INT8", "INT32"}


def test_lower_keeps_float_weights_when_not_quantized(target, tmp_path):
    lowered = target.lower(model(nn.Linear(2, 3), (2,), quantized=False), tmp_path, name="original")
    assert lowered.variant == "fp32"
    assert {flatbuffer.dtype_name(tensor) for tensor in tensors(lowered.path)} == {"FLOAT32"}


def test_lower_names_the_signature_after_the_model_when_it_has_two_inputs(target, tmp_path):
    class Difference(nn.Module):
        def forward(self, first, second):
            return first - second

    lowered = target.lower(model(Difference(), (2,), (2,), quantized=False), tmp_path, name="model")
    (signature,) = flatbuffer.read_model(lowered.path.read_bytes()).signatureDefs
    assert [port.name for port in signature.inputs] == [b"input_0", b"input_1"]
    assert [port.name for port in signature.outputs] == [b"scores"]
    first, second = np.array([[5.0, 1.0]], np.float32), np.array([[2.0, 4.0]], np.float32)
    (output,) = target.load(lowered, threads=1).run((first, second))
    assert output.tolist() == [[3.0, -3.0]]


def test_lower_leaves_only_the_finished_file_behind(target, tmp_path):
    lowered = target.lower(model(nn.Linear(2, 3), (2,), quantized=False), tmp_path, name="original")
    assert list(tmp_path.iterdir()) == [lowered.path]


def test_lower_prints_nothing(target, tmp_path, capfd):
    lowered = target.lower(model(nn.Linear(2, 3), (2,), quantized=False), tmp_path, name="original")
    target.load(lowered, threads=1)
    assert capfd.readouterr() == ("", "")


def test_lower_gives_the_converters_reason_when_an_operator_has_no_form(target, tmp_path):
    class Unsupported(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    with pytest.raises(TargetError, match=r"litert-torch cannot lower this model: .*bessel_j0"):
        target.lower(model(Unsupported(), (2,), quantized=False), tmp_path, name="model")
    assert not list(tmp_path.iterdir())


@torch.library.custom_op("edgewright_test::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    """An operator of a user's own, as a C++ extension would register it."""
    return x * 2


twice.register_fake(torch.empty_like)


@pytest.mark.parametrize("quantized", [False, True])
def test_lower_names_the_operator_when_it_is_the_users_own(target, tmp_path, quantized):
    class Custom(nn.Module):
        def forward(self, x):
            return through_int8(twice(through_int8(x, 0.5, 0)), 0.5, 0) if quantized else twice(x)

    with pytest.raises(TargetError, match=r"cannot lower this model: .*edgewright_test[.:]+twice") as caught:
        target.lower(model(Custom(), (2,), quantized=quantized), tmp_path, name="model")
    assert "rewrite it with other operators" in caught.value.fix
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("scale", "zero_point"), [(0.0513, 3), (3 / 61, -67), (0.1537, -128)])
def test_hardswish_gives_the_programs_result_for_all_256_integers_in_one_partition(
    target, tmp_path, scale, zero_point, inplace
):
    """With these scales no result lies midway between two integers, where float kernels may go either way."""

    class Hardswish(nn.Module):
        def forward(self, x):
            return through_int8(F.hardswish(through_int8(x, scale, zero_point), inplace), 0.0293, -111)

    lowered = target.lower(model(Hardswish(), (256,), quantized=True), tmp_path, name="model")
    x = scale * (torch.arange(-128.0, 128)[None] - zero_point)
    (output,) = target.load(lowered, threads=1).run((x.numpy(),))
    assert np.array_equal(output, Hardswish()(x).numpy())
    assert len(np.unique(output)) > 40
    placement = target.placement(lowered)
    assert "1 XNNPACK partition" in placement.source
    assert {fallback.reason for fallback in placement.fallback} == {KEPT_REASONS["HARD_SWISH"], CONVERTS}


@pytest.mark.slow
def test_lower_writes_a_file_for_the_npu_only_when_the_cpus_has_other_operators(tmp_path, monkeypatch):
    class Hardswish(nn.Module):
        def forward(self, x):
            return through_int8(F.hardswish(through_int8(x, 0.0513, 3)), 0.0293, -111)

    both = TfliteTarget(TfliteConfig(npu=("ethos-u55-256",)))
    plain = both.lower(model(QuantizedLinear(), (2,), quantized=True), tmp_path, name="plain")
    assert lowering.for_npu(plain.path) == plain.path
    swish = model(Hardswish(), (8,), quantized=True)
    lowered = both.lower(swish, tmp_path, name="model")
    assert {flatbuffer.dtype_name(tensor) for tensor in tensors(lowered.path)} == {"INT8", "FLOAT32"}
    assert {flatbuffer.dtype_name(tensor) for tensor in tensors(lowering.for_npu(lowered.path))} == {"INT8"}

    translate = lowering.translate
    monkeypatch.setattr(
        lowering, "translate", lambda program, goal: _refuse() if goal == "npu" else translate(program, goal)
    )
    lowered = both.lower(swish, tmp_path, name="model")
    assert "the NPU gets the CPU's file: no such form" in lowered.notes
    assert lowering.for_npu(lowered.path) == lowered.path


def _refuse():
    raise TargetError("no such form")


@pytest.mark.slow
def test_lower_passes_through_float_when_parameters_change_next_to_a_pad(target, tmp_path):
    class Requantized(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = QuantizedConv(stride=2)  # on an even size, so that it pads in an operator of its own

        def forward(self, x):
            return self.conv(through_int8(x, 0.07, 9))

    module = Requantized()
    lowered = target.lower(model(module, (3, 8, 8), quantized=True), tmp_path, name="model")
    assert lowered.notes[0] == "1 changes of quantization parameters pass through float"
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    (output,) = target.load(lowered, threads=1).run((x.numpy(),))
    assert np.abs(output - module(x).detach().numpy()).max() <= 0.1 * 1.001


def test_write_model_leaves_no_file_when_the_content_is_no_model(tmp_path):
    with pytest.raises(TargetError, match="wrote no usable model"):
        flatbuffer.write_model(b"nonsense", tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


def test_write_model_keeps_the_older_file_when_the_new_one_is_refused(target, tmp_path):
    lowered = target.lower(model(nn.Linear(2, 3), (2,), quantized=False), tmp_path, name="model")
    content = lowered.path.read_bytes()

    def refuse(partial):
        assert partial.read_bytes() == content + b"\0"
        assert lowered.path.read_bytes() == content
        raise TargetError("LiteRT does not like it")

    with pytest.raises(TargetError, match="does not like it"):
        flatbuffer.write_model(content + b"\0", lowered.path, verify=refuse)
    assert lowered.path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [lowered.path]


def test_lower_gives_litert_s_reason_and_leaves_no_file_when_it_cannot_load_the_result(target, tmp_path, monkeypatch):
    finish = lowering.finish

    def with_a_custom_operator(*arguments):
        tflite_model = flatbuffer.read_model(finish(*arguments))
        tflite_model.operatorCodes[0].builtinCode = tflite_model.operatorCodes[0].deprecatedBuiltinCode = (
            BuiltinOperator.CUSTOM
        )
        tflite_model.operatorCodes[0].customCode = b"Mine"
        return flatbuffer.serialize(tflite_model)

    monkeypatch.setattr(lowering, "finish", with_a_custom_operator)
    with pytest.raises(TargetError, match=r"LiteRT cannot run the converted model: .*custom op: Mine"):
        target.lower(model(nn.Linear(2, 3), (2,), quantized=False), tmp_path, name="model")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_lower_refuses_a_model_that_litert_cannot_load(target, tmp_path):
    class SevenDimensions(nn.Module):
        def forward(self, x):
            return x.reshape(1, 2, 2, 2, 2, 2, 2).permute(0, 6, 5, 4, 3, 2, 1) + 1

    with pytest.raises(TargetError, match=r"LiteRT cannot run the converted|litert-torch cannot lower"):
        target.lower(model(SevenDimensions(), (64,), quantized=False), tmp_path, name="model")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_lower_notes_the_analyzers_words_when_the_gpu_is_asked_for(tmp_path):
    lowered = TfliteTarget(TfliteConfig(gpu=True)).lower(
        model(nn.Linear(2, 3), (2,), quantized=False), tmp_path, name="original"
    )
    assert any("compatible with GPU delegate" in note for note in lowered.notes)
