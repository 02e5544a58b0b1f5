"""Distillation steps per second against a plain hand-written loop, and memory over epochs.

Run ``python -m tests.benchmarks.bench_training``; it writes ``results/training.json`` beside itself. Both loops train
the demo's network (its own teacher) on the same images with the same loss, optimizer and thread count, in alternating
rounds; times are of the processor, so that other work on the machine weighs less. The plain loop has its images
preprocessed in memory before it starts.
"""

from __future__ import annotations

import copy
import json
import resource
import statistics
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from calibration_data.fashion_mnist.train import HERE, IMAGE, PREPROCESSING
from pipeline.data.open import open_samples
from pipeline.data.samples import SampleSet
from pipeline.data.source import DataSource
from pipeline.machine.processor import cpu_name
from pipeline.models.load import load
from pipeline.recipe import ModelSource, TrainingConfig
from pipeline.tasks.lookup import for_task, suggested_for
from pipeline.tasks.task import Task
from pipeline.training.loop import fit
from pipeline.training.losses import distillation_loss

RESULTS = Path(__file__).parent / "results" / "training.json"
BATCH, IMAGES, ROUNDS, EPOCHS_OF_MEMORY = 64, 1_024, 3, 8
CONFIG = TrainingConfig(epochs=1, batch_size=BATCH)


def plain_loop(student: nn.Module, teacher: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """What one writes by hand."""
    optimizer = torch.optim.SGD(student.parameters(), 0.05, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=IMAGES // BATCH)
    student.train()
    for chosen in torch.randperm(IMAGES).split(BATCH):
        x, y = images[chosen], labels[chosen]
        with torch.no_grad():
            target = functional.log_softmax(teacher(x) / 4, dim=1)
        optimizer.zero_grad()
        logits = student(x)
        soft = functional.kl_div(
            functional.log_softmax(logits / 4, dim=1), target, reduction="batchmean", log_target=True
        )
        (0.9 * 16 * soft + 0.1 * functional.cross_entropy(logits, y)).backward()
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
        schedule.step()


def processor_seconds(student: nn.Module, teacher: nn.Module, task: Task, samples: SampleSet, *, plain: bool) -> float:
    """One epoch of a fresh copy of the student."""
    student = copy.deepcopy(student)
    batch = next(samples.batches(IMAGES))
    assert batch.labels is not None
    started = time.process_time()
    if plain:
        plain_loop(student, teacher, batch.inputs[0], batch.labels)
    else:
        fit(student, distillation_loss(teacher, task, temperature=4.0, alpha=0.9), samples, CONFIG, seed=0)
    return time.process_time() - started


def main() -> None:
    """Measure and print."""
    source = ModelSource(
        checkpoint=Path("model.safetensors"),
        factory="calibration_data.fashion_mnist.network:resnet",
        inputs=(IMAGE,),
    )
    teacher = load(source, HERE).module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    samples = open_samples(
        DataSource(npz=Path("train.npz"), limit=IMAGES), (IMAGE,), PREPROCESSING, name="t", root=HERE
    )
    task = suggested_for(teacher, samples)
    samples = for_task(samples, task)
    times: dict[bool, list[float]] = {True: [], False: []}
    processor_seconds(teacher, teacher, task, samples.take(BATCH), plain=False)  # warm up
    for _ in range(ROUNDS):
        for plain in (True, False):
            times[plain].append(processor_seconds(teacher, teacher, task, samples, plain=plain))
    speed = statistics.median(times[True]) / statistics.median(times[False])
    memory: list[int] = []

    def peak(_: nn.Module) -> None:
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)

    fit(
        copy.deepcopy(teacher),
        distillation_loss(teacher, task, temperature=4.0, alpha=0.9),
        samples.take(4 * BATCH),
        CONFIG.model_copy(update={"epochs": EPOCHS_OF_MEMORY}),
        seed=0,
        validate=peak,
    )
    result = {
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "plain_processor_seconds": times[True],
        "fit_processor_seconds": times[False],
        "steps_per_second_of_plain": speed,
        "peak_memory_mib_after_each_epoch": memory,
    }
    print(text := json.dumps(result, indent=2))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
