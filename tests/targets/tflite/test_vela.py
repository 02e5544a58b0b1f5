import pytest
from torch import nn
from torch.nn import functional as F

from pipeline.core import RecipeError
from pipeline.recipe import TfliteConfig, parse_recipe
from pipeline.target import Estimated, Skipped
from targets.tflite import TfliteTarget, vela
from tests.targets.tflite.programs import QuantizedConv, model, through_int8

# What Vela 5.2.0 printed for a softmax that was left in float, shortened.
LOG = """\
Warning (supported operators) operator: DIV, ofm: 'M;7'
Reason: Unsupported opType

Warning (supported operators) operator: EXP, ofm: 'M;5'
Reason: Operation has tensor with unsupported DataType Float32 (M;4)
Feature-map dataTypes must be one of {"INT16", "INT32", "INT64", "INT8", "UINT8"}

   CPU: Passthrough = M;5 (outputs [1, 8, 8, 8])
   CPU: Passthrough = M;7 (outputs [1, 8, 8, 8])
   CPU: Passthrough = M;8 (outputs [1, 8, 8, 8])
   NPU: ReduceMax = M;1 (outputs [1, 8, 1, 8])
"""


class ConvThen(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.conv, self.function = QuantizedConv(), function

    def forward(self, x):
        return self.function(self.conv(x))


def lowered(tmp_path, function, **config):
    target = TfliteTarget(TfliteConfig(**config))
    module = ConvThen(lambda y: through_int8(function(y), 0.02, -100))
    return target, target.lower(model(module, (3, 16, 16), quantized=True), tmp_path, name="model")


def test_read_placement_gives_each_operator_velas_reason():
    placement = vela.read_placement(LOG, "ethos-u55-256")
    assert (placement.operators, placement.accelerated) == (4, 1)
    assert [(fallback.op, fallback.count, fallback.reason) for fallback in placement.fallback] == [
        ("DIV", 1, "Unsupported opType"),
        ("EXP", 1, "Operation has tensor with unsupported DataType Float32 (M;4)"),
        ("other", 1, "Vela gives no reason"),
    ]


def test_read_summary_refuses_anything_but_one_row():
    with pytest.raises(ValueError, match="not enough values"):
        vela.read_summary("inference_time,core_clock\n")


@pytest.mark.slow
@pytest.mark.parametrize(("goal", "file"), [("cpu", "model_npu"), ("npu", "model")])
def test_estimates_places_hardswish_on_the_npu_when_the_file_is_for_either(tmp_path, goal, file):
    target, model = lowered(tmp_path, F.hardswish, npu=("ethos-u55-256", "ethos-u85-256"), optimize_for=goal)
    assert [each.stem for each in sorted(tmp_path.glob("*.tflite"))] == sorted({"model", file})
    u55, u85 = target.estimates(model)
    assert isinstance(u55, Estimated)
    assert isinstance(u85, Estimated)
    assert (u55.device, u85.device) == ("Arm Ethos-U55-256", "Arm Ethos-U85-256")
    assert u55.placement.accelerated == u55.placement.operators > 0
    assert u85.placement.accelerated == u85.placement.operators > 0
    assert (tmp_path / "ethos-u55-256" / f"{file}_vela.tflite").stat().st_size > 0
    # the 3x3 convolution alone is 16 * 16 * 8 * 27 multiply-accumulates
    assert u55.figures["macs"] >= 16 * 16 * 8 * 27
    assert u55.median_ns == pytest.approx(u55.figures["cycles"] / u55.figures["clock_hz"] * 1e9, rel=1e-6)
    assert "500 MHz" in u55.method


@pytest.mark.slow
def test_estimates_says_what_is_left_out_when_operators_fall_to_the_cpu(tmp_path):
    target, model = lowered(tmp_path, lambda y: y.sin(), npu=("ethos-u55-128",))
    (estimate,) = target.estimates(model)
    assert isinstance(estimate, Estimated)
    assert estimate.method.endswith("operators that fall to the CPU")
    assert "SIN" in {fallback.op for fallback in estimate.placement.fallback}


@pytest.mark.slow
def test_estimates_is_skipped_with_velas_reason_when_the_model_is_float(tmp_path):
    target = TfliteTarget(TfliteConfig(npu=("ethos-u55-256",)))
    lowered = target.lower(model(nn.Linear(4, 4), (4,), quantized=False), tmp_path, name="model")
    (estimate,) = target.estimates(lowered)
    assert isinstance(estimate, Skipped)
    assert "Float32" in estimate.reason


def test_estimate_is_skipped_with_velas_reason_when_vela_fails(tmp_path):
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"nonsense")
    (tmp_path / "ethos-u55-256").mkdir()
    (tmp_path / "ethos-u55-256" / "broken_summary_of_an_older_run.csv").write_text("inference_time\n1\n")
    estimate = vela.estimate(broken, "ethos-u55-256")
    assert isinstance(estimate, Skipped)
    assert "No networks defined" in estimate.reason


def test_recipe_refuses_an_npu_that_vela_does_not_know():
    recipe = {
        "name": "x",
        "model": {"checkpoint": "model.pt2"},
        "data": {"evaluation": {"npz": "x.npz"}},
        "targets": [{"tflite": {"npu": ["ethos-u99"]}}],
    }
    with pytest.raises(RecipeError, match=r"npu\[0\]: Input should be 'ethos-u55-32'"):
        parse_recipe(recipe)
