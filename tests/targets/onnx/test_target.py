"""A small quantized program through the whole target: file, names, integers, session, placement."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401  # registers the quantized_decomposed operators

import targets
from pipeline.core import Model, OutputError, Preprocessing, TargetError, TensorSpec
from pipeline.recipe import OnnxConfig
from pipeline.target import Lowered
from targets.onnx import files, lowering

Q = torch.ops.quantized_decomposed


def fake_quantize(x: Tensor, scale: float, zero_point: int) -> Tensor:
    rule = (scale, zero_point, -128, 127, torch.int8)
    return Q.dequantize_per_tensor(Q.quantize_per_tensor(x, *rule), *rule)


class Program(nn.Module):
    """conv, relu6, mean, linear with quantizers written by hand, in the form that PT2E gives a quantized program."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.linear = nn.Linear(16, 5)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)
        for name, layer in (("conv", self.conv), ("linear", self.linear)):
            scale = layer.weight.detach().abs().flatten(1).amax(1) / 127
            self.register_buffer(f"{name}_scale", scale)
            self.register_buffer(f"{name}_zero", torch.zeros(len(scale), dtype=torch.int64))

    def weight(self, name: str) -> Tensor:
        rule = (getattr(self, f"{name}_scale"), getattr(self, f"{name}_zero"), 0, -127, 127, torch.int8)
        return Q.dequantize_per_channel(Q.quantize_per_channel(getattr(self, name).weight, *rule), *rule)

    def forward(self, image: Tensor) -> Tensor:
        x = fake_quantize(image, 0.03, -5)
        x = nn.functional.conv2d(x, self.weight("conv"), self.conv.bias, padding=1)
        x = fake_quantize(nn.functional.relu6(x), 6 / 255, -128)
        x = fake_quantize(x.mean((2, 3), keepdim=True), 0.01, -128)
        x = fake_quantize(x.flatten(1), 0.01, -128)
        return fake_quantize(nn.functional.linear(x, self.weight("linear"), self.linear.bias), 0.02, 3)


class Float(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        program = Program()
        self.conv, self.linear = program.conv, program.linear

    def forward(self, image: Tensor) -> Tensor:
        return self.linear(nn.functional.relu6(self.conv(image)).mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(
        module=Program().eval(),
        reference=Float().eval(),
        inputs=(TensorSpec(name="image", shape=(3, 8, 8)),),
        outputs=("logits",),
        classes=("a", "b", "c", "d", "e"),
        quantized=True,
    )


@pytest.fixture(scope="module")
def lowered(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    return targets.get("onnx").lower(model, tmp_path_factory.mktemp("int8"), name="model")


@pytest.fixture(scope="module")
def original(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    return targets.get("onnx").lower(model.original(), tmp_path_factory.mktemp("fp32"), name="original")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_lower_writes_a_checked_file_that_keeps_names_and_batch(lowered: Lowered) -> None:
    model = onnx.load(lowered.path)
    onnx.checker.check_model(model, full_check=True)
    assert [item.name for item in model.graph.input] == ["image"]
    assert [item.name for item in model.graph.output] == ["logits"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert lowered.batch_size is None
    assert lowered.variant == "int8"
    assert {prop.key: prop.value for prop in model.metadata_props}["classes"] == "a,b,c,d,e"
    assert model.producer_name == "edgewright"
    assert [file.name for file in lowered.path.parent.iterdir()] == ["model.onnx"]


def test_lower_stores_weights_as_int8_once_and_biases_as_int32(model: Model, lowered: Lowered) -> None:
    onnx_model = onnx.load(lowered.path)
    stored = {item.name: (item.data_type, tuple(item.dims)) for item in onnx_model.graph.initializer}
    assert stored["conv.weight.int8"] == (onnx.TensorProto.INT8, (16, 3, 3, 3))
    assert stored["linear.weight.int8"] == (onnx.TensorProto.INT8, (5, 16))
    assert stored["conv.bias.int32"] == (onnx.TensorProto.INT32, (16,))
    assert "conv.weight" not in stored
    weights = onnx.numpy_helper.to_array(next(i for i in onnx_model.graph.initializer if i.name == "conv.weight.int8"))
    program: Program = model.module  # type: ignore[assignment]
    expected = torch.round(program.conv.weight / program.conv_scale.view(-1, 1, 1, 1)).clamp(-127, 127)
    assert np.array_equal(weights, expected.detach().numpy())


def test_session_gives_the_programs_integers_when_run_in_onnxruntime(
    model: Model, images: Tensor, lowered: Lowered
) -> None:
    session = targets.get("onnx").load(lowered, threads=1)
    (logits,) = session.run((images.numpy(),))
    steps = np.abs(logits - model.module(images).detach().numpy()) / 0.02
    assert steps.max() <= 1.01  # one rounding unit, from biases rounded to the accumulator's scale
    assert (steps > 0.5).mean() < 0.02


def test_session_equals_torch_when_the_original_is_lowered(model: Model, images: Tensor, original: Lowered) -> None:
    assert original.variant == "fp32"
    (logits,) = targets.get("onnx").load(original, threads=2).run((images.numpy(),))
    np.testing.assert_allclose(logits, model.reference(images).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_placement_is_all_integer_when_every_operator_is_quantized(lowered: Lowered) -> None:
    placement = targets.get("onnx").placement(lowered)
    assert placement is not None
    assert placement.fallback == ()
    assert placement.accelerated == placement.operators


def test_placement_names_the_operators_when_the_model_is_float(original: Lowered) -> None:
    placement = targets.get("onnx").placement(original)
    assert placement is not None
    assert placement.accelerated == 0
    assert sum(item.count for item in placement.fallback) == placement.operators


def test_lower_keeps_int8_activations_when_the_cpu_is_arm(model: Model, tmp_path: Path) -> None:
    onnx_model = onnx.load(targets.get("onnx", OnnxConfig(cpu="arm")).lower(model, tmp_path, name="model").path)
    constants = {item.name: item.data_type for item in onnx_model.graph.initializer}
    zero_points = {constants[node.input[2]] for node in onnx_model.graph.node if node.op_type == "QuantizeLinear"}
    assert zero_points == {onnx.TensorProto.INT8}


def test_lower_leaves_no_file_when_the_disk_is_full(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.ir, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        targets.get("onnx").lower(model, tmp_path, name="model")
    assert list(tmp_path.iterdir()) == []


def test_lower_names_the_operator_when_it_has_no_onnx_form(model: Model, tmp_path: Path) -> None:
    class Unknown(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.linalg.svd(image.flatten(2))[1]

    broken = replace(model, module=Unknown().eval(), quantized=False)
    with pytest.raises(TargetError, match="svd"):
        targets.get("onnx").lower(broken, tmp_path, name="model")
    assert list(tmp_path.iterdir()) == []


def test_lower_refuses_with_a_reason_when_a_pass_fails(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr(lowering, "fuse", broken)
    with pytest.raises(TargetError, match="cannot be written as ONNX: list index out of range"):
        targets.get("onnx").lower(model, tmp_path, name="model")


def test_lower_stores_uint8_weights_with_the_same_output_when_the_cpu_has_no_vnni(
    model: Model, images: Tensor, lowered: Lowered, tmp_path: Path
) -> None:
    safe = targets.get("onnx", OnnxConfig(cpu="x86", vnni=False))
    other = safe.lower(model, tmp_path, name="model")
    types = {item.name: item.data_type for item in onnx.load(other.path).graph.initializer}
    assert onnx.TensorProto.INT8 not in types.values()
    assert any("saturate" in note for note in other.notes)
    (expected,), (logits,) = (safe.load(item, threads=1).run((images.numpy(),)) for item in (lowered, other))
    np.testing.assert_array_equal(logits, expected)
    assert safe.placement(other).fallback == ()


def test_lower_says_so_when_the_folder_cannot_be_written_to(model: Model, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(OutputError, match="cannot be written"):
        targets.get("onnx").lower(model, blocked, name="model")


def test_lower_puts_weights_beside_the_graph_when_one_file_cannot_hold_both(
    model: Model, images: Tensor, lowered: Lowered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LARGEST_FILE", 100)
    target = targets.get("onnx")
    split = target.lower(model, tmp_path, name="model")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert any("model.onnx.data" in note for note in split.notes)
    assert split.size_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    (expected,), (logits,) = (target.load(item, threads=1).run((images.numpy(),)) for item in (lowered, split))
    np.testing.assert_array_equal(logits, expected)
    monkeypatch.undo()
    target.lower(model, tmp_path, name="model")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_lower_leaves_neither_file_when_the_second_cannot_be_moved(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_file = Path.replace

    def fails_on_the_graph(self: Path, target: Path) -> Path:
        if target.suffix == ".onnx":
            raise OSError(errno.EACCES, "Permission denied")
        return replace_file(self, target)

    monkeypatch.setattr(files, "LARGEST_FILE", 100)
    monkeypatch.setattr(Path, "replace", fails_on_the_graph)
    with pytest.raises(OutputError, match="Permission denied"):
        targets.get("onnx").lower(model, tmp_path, name="model")
    assert list(tmp_path.iterdir()) == []


def test_lower_says_what_made_the_file_in_its_metadata(model: Model, tmp_path: Path) -> None:
    known = replace(model, recipe_sha256="ab12", preprocessing=Preprocessing(scale=0.5, mean=(1.0, 2.0, 3.0)))
    path = targets.get("onnx").lower(known, tmp_path, name="model").path
    properties = {item.key: item.value for item in onnx.load(path).metadata_props}
    assert properties["recipe_sha256"] == "ab12"
    assert json.loads(properties["preprocessing"]) == {"scale": 0.5, "mean": [1.0, 2.0, 3.0]}


@pytest.mark.slow
def test_lower_halves_the_weights_when_fp16_is_asked_for(
    model: Model, images: Tensor, original: Lowered, tmp_path: Path
) -> None:
    target = targets.get("onnx", OnnxConfig(variants=("fp16",)))
    assert target.variants == ("fp16",)
    half = target.lower(model.original(), tmp_path, name="fp16", variant="fp16")
    stored = {item.name: item.data_type for item in onnx.load(half.path).graph.initializer}
    assert set(stored.values()) <= {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64}
    assert half.variant == target.open(half.path).variant == "fp16"
    (expected,), (logits,) = (target.load(item, threads=1).run((images.numpy(),)) for item in (original, half))
    assert logits.dtype == np.float32
    assert 0 < np.abs(logits - expected).max() < 2**-10 * np.abs(expected).max() * 4


@pytest.mark.slow
def test_lower_also_writes_the_mobile_format_when_ort_is_asked_for(
    model: Model, images: Tensor, lowered: Lowered, tmp_path: Path
) -> None:
    target = targets.get("onnx", OnnxConfig(ort=True))
    target.lower(model, tmp_path, name="model")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.ort"]
    mobile = target.open(tmp_path / "model.ort")
    assert (mobile.variant, mobile.inputs) == ("int8", model.inputs)
    (expected,), (logits,) = (target.load(item, threads=1).run((images.numpy(),)) for item in (lowered, mobile))
    np.testing.assert_array_equal(logits, expected)


def test_estimates_skip_a_provider_with_the_reason_when_the_build_lacks_it(lowered: Lowered) -> None:
    target = targets.get("onnx", OnnxConfig(providers=("tensorrt", "cpu")))
    (skipped,) = target.estimates(lowered)
    assert skipped.runtime.endswith("TensorrtExecutionProvider")
    assert "no TensorrtExecutionProvider" in skipped.reason
    assert target.load(lowered, threads=1).runtime == f"onnxruntime {onnxruntime.__version__}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preprocessing", "converted"),
    [
        pytest.param(Preprocessing(scale=0.03, mean=(3.69,), layout="nhwc"), False, id="the integers are the pixels"),
        pytest.param(
            Preprocessing(scale=1 / 255, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), layout="nchw"),
            True,
            id="per channel",
        ),
    ],
)
def test_lower_gives_the_same_logits_when_the_file_takes_pixels(
    model: Model, lowered: Lowered, tmp_path: Path, preprocessing: Preprocessing, converted: bool
) -> None:
    target = targets.get("onnx", OnnxConfig(image_input=True))
    taking = target.lower(replace(model, preprocessing=preprocessing), tmp_path, name="model")
    stored = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    nchw = torch.from_numpy(stored).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std or (1.0,)))
    preprocessed = ((nchw * preprocessing.scale - mean) / std).numpy()
    (expected,) = target.load(lowered, threads=1).run((preprocessed,))

    runtime = onnxruntime.InferenceSession(taking.path)
    given = stored if preprocessing.layout == "nhwc" else np.ascontiguousarray(nchw.numpy())
    np.testing.assert_array_equal(runtime.run(None, {"image": given})[0], expected)
    np.testing.assert_array_equal(target.load(taking, threads=1).run((preprocessed,))[0], expected)
    assert ("Cast" in [node.op_type for node in onnx.load(taking.path).graph.node]) is converted
    assert target.open(taking.path).inputs[0].shape == given.shape[1:]
    assert target.placement(taking).operators > 0


@pytest.mark.slow
def test_lower_takes_any_height_and_width_when_the_recipe_lets_them_vary(model: Model, tmp_path: Path) -> None:
    target = targets.get("onnx", OnnxConfig(dynamic={"image": (2, 3)}))
    dynamic = target.lower(model, tmp_path, name="model")
    sizes = onnx.load(dynamic.path).graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_param or size.dim_value for size in sizes] == ["batch", 3, "image_2", "image_3"]
    assert target.open(dynamic.path).inputs == model.inputs
    images = torch.randn(4, 3, 13, 10, generator=torch.Generator().manual_seed(2))
    (logits,) = target.load(dynamic, threads=1).run((images.numpy(),))
    assert np.abs(logits - model.module(images).detach().numpy()).max() <= 0.02 * 1.01


@pytest.mark.slow
def test_lower_names_the_axis_when_the_model_fixes_a_size_that_should_vary(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    fixed = Model(module=module, reference=module, inputs=(TensorSpec(name="image", shape=(3, 2, 2)),))
    with pytest.raises(TargetError, match="axis 2 of 'image' at 2"):
        targets.get("onnx", OnnxConfig(dynamic={"image": (2,)})).lower(fixed, tmp_path, name="model")


def test_placement_lists_the_slowest_operators_first(lowered: Lowered) -> None:
    slowest = targets.get("onnx").placement(lowered).slowest
    assert 0 < len(slowest) <= 10
    assert sorted((item.share for item in slowest), reverse=True) == [item.share for item in slowest]
    assert sum(item.share for item in slowest) <= 1 + 1e-9
    assert "QLinearConv" in [item.op for item in slowest]
    assert all(item.median_ns > 0 for item in slowest)


@pytest.mark.slow
def test_placement_times_the_parts_when_the_runtime_takes_an_operator_apart(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Hardswish(), nn.Flatten()).eval()
    model = Model(module=module, reference=module, inputs=(TensorSpec(name="image", shape=(3, 32, 32)),))
    target = targets.get("onnx")
    slowest = target.placement(target.lower(model, tmp_path, name="model")).slowest
    assert {"HardSigmoid", "Mul"} <= {item.op for item in slowest}
    assert all(item.median_ns > 0 for item in slowest)
