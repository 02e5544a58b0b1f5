"""The Core ML reference interpreter: its speed, and how closely int8 programs are followed.

    python tests/benchmarks/bench_interpreter.py [--networks efficientnet_b0 …] [--parity resnet …]

Speed: images per second at 224x224 with FP32 arithmetic on all cores, in batches; torch eager beside it for scale.
Parity: SQNR in dB of an int8 package's outputs against the quantized program, for the default package with every result
rounded to FP16 and without, and for a package made with ``precision: float32``; the last column is the SQNR of the
quantized program against its float network, which is what int8 itself costs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import networks
import torch

from pipeline.core import Model
from pipeline.data.samples import SampleSet
from pipeline.machine.processor import all_cores, cpu_name
from pipeline.recipe import Budget, CoremlConfig, QuantizeConfig
from pipeline.stages.quantize import quantize
from pipeline.target import Session
from pipeline.tasks.comparison import Comparison
from pipeline.tasks.prediction import predictor
from targets.coreml import CoremlTarget
from targets.coreml.session import InterpreterSession
from tests.networks.architectures import ARCHITECTURES

BATCH, REPEATS = 8, 3


def images_per_second(call: Callable[[], object]) -> float:
    """The best of `REPEATS` runs of one batch, after one to warm up."""
    durations = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        call()
        durations.append(time.perf_counter() - started)
    return BATCH / min(durations[1:])


def speed(name: str) -> None:
    model, images = networks.build(name), networks.images(BATCH)
    target = CoremlTarget(CoremlConfig(batch_sizes=(BATCH,)))
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        session = target.load(target.lower(model, Path(folder), name=name), threads=all_cores())
        ours = images_per_second(lambda: session.run((images.numpy(),)))
        eager = images_per_second(lambda: model.module(images))
    print(f"{name:20} {ours:8.1f} images/s   torch eager {eager:8.1f}", flush=True)


def parity(name: str) -> None:
    architecture = ARCHITECTURES[name]
    model = architecture.model()
    int8 = quantize(model, QuantizeConfig(), architecture.samples(64), budget=Budget(metric="agreement"))
    samples, half = architecture.samples(64, seed=2), CoremlTarget()
    full = CoremlTarget(CoremlConfig(precision="float32"))
    with tempfile.TemporaryDirectory() as folder:
        package = half.lower(int8, Path(folder), name="half")
        sessions: list[Session] = [InterpreterSession(package), InterpreterSession(package, precision="float32")]
        sessions.append(full.load(full.lower(int8, Path(folder), name="full"), threads=1))
        columns = [f"{against_program(session, int8, samples):8.1f}" for session in sessions]
    print(f"{name:20}", *columns, f"{against_original(int8, samples):8.1f}", flush=True)


def against_program(session: Session, int8: Model, samples: SampleSet) -> float:
    compared = Comparison(class_axis=1)
    for batch in samples.batches(64):
        outputs = session.run(tuple(tensor.numpy() for tensor in batch.inputs))
        compared.update(tuple(torch.from_numpy(array) for array in outputs), predictor(int8.module)(batch.inputs))
    return compared.sqnr_db


def against_original(int8: Model, samples: SampleSet) -> float:
    compared = Comparison(class_axis=1)
    for batch in samples.batches(64):
        compared.update(predictor(int8.module)(batch.inputs), predictor(int8.reference)(batch.inputs))
    return compared.sqnr_db


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=["efficientnet_b0", "mobilenet_v2", "resnet18"])
    parser.add_argument("--parity", nargs="*", default=list(ARCHITECTURES))
    arguments = parser.parse_args()
    torch.set_num_threads(all_cores())
    print(f"{cpu_name()}, {all_cores()} cores; 224x224, batch {BATCH}, FP32")
    for network in arguments.networks:
        speed(network)
    if arguments.parity:
        print(f"\nSQNR in dB      {'FP16':>12} {'as FP32':>8} {'float32':>8} {'int8':>8}")
    for network in arguments.parity:
        parity(network)
