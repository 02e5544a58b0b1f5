"""Every common architecture becomes an int8 program that follows its float original."""

from __future__ import annotations

import time

import pytest

from pipeline.stages.quantize.graph.canonical import canonical_graph
from pipeline.stages.quantize.graph.cost import integer_share
from pipeline.stages.quantize.graph.scheme import scheme_of
from pipeline.stages.quantize.ranges.calibration import calibrate
from pipeline.stages.quantize.scales.annotator import Int8Quantizer
from pipeline.stages.quantize.simulation import convert
from pipeline.tasks.comparison import Comparison
from pipeline.tasks.prediction import predictor
from tests.networks.architectures import ARCHITECTURES
from tests.pipeline.stages.quantize.prepared import prepare

# SQNR in dB of all outputs on unseen samples: what a working scheme reaches here, less about 3 dB. Taking one range
# before a clamp, or folding one batch norm wrongly, costs far more.
FLOOR_DB = {
    "resnet": 22,
    "mobilenet_v2": 28,
    "mobilenet_v3": 18,
    "efficientnet": 18,
    "densenet": 29,
    "unet": 24,
    "convnext": 27,
    "vit": 18,
    "mobilevit": 22,
    "bert": 27,
    "lstm": 33,
    "gru": 21,
    "bilstm": 27,
    "audio_cnn": 25,
    "two_in_two_out": 24,
    "called_twice": 41,
    "control_flow": 33,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_int8_program_follows_the_float_network(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    architecture = ARCHITECTURES[name]
    model = architecture.model()
    started = time.process_time()
    found = calibrate(canonical_graph(model), architecture.samples(64), batch_size=32)
    program = convert(prepare(found, method="minmax", bias_correction="analytic"))
    annotating = time.process_time()
    Int8Quantizer(scheme_of(found.graph)).annotate(found.graph)
    annotating = time.process_time() - annotating
    seconds = time.process_time() - started
    share = integer_share(program, architecture.inputs)
    compared = Comparison(class_axis=1)
    for batch in architecture.samples(64, seed=2).batches(64):
        compared.update(predictor(program)(batch.inputs), predictor(model.module)(batch.inputs))
    with capsys.disabled():
        print(f"\n{name}: {share:.1%} of MACs in int8, {compared.sqnr_db:.1f} dB, {seconds:.1f} s", end=" ")
    assert share >= 0.99
    assert compared.sqnr_db > FLOOR_DB[name]
    assert seconds < 20
    assert annotating < 10
