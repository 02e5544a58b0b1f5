"""Benchmark: accuracy, parity and latency of every target against the original, on one evaluation set, in one run."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from pipeline.core import MetricInfo, Model, TargetError, first_line
from pipeline.core.arrays import Array
from pipeline.data.samples import Batch, SampleSet, with_examples
from pipeline.machine.memory import affordable_batch, footprint
from pipeline.machine.processor import all_cores, cpu_name
from pipeline.machine.timing import Candidate, interleave
from pipeline.models.capture import count_macs, count_parameters, example_inputs
from pipeline.progress import Progress
from pipeline.recipe import Budget
from pipeline.report.model import (
    ArtifactRecord,
    CrossCheck,
    DifferenceRecord,
    OriginalRecord,
    OutputFidelity,
    Parity,
    Sureness,
    TargetRecord,
    VariantRecord,
)
from pipeline.target import (
    Exported,
    Latency,
    Lowered,
    Placement,
    Session,
    Skipped,
    Target,
    Variant,
    files_of,
    measured,
)
from pipeline.tasks.comparison import Comparison
from pipeline.tasks.differences import Difference, Paired, differences, samples_to_tell
from pipeline.tasks.lookup import for_task, task_of
from pipeline.tasks.loop import Loop, loop_of, of_sequences
from pipeline.tasks.prediction import Predict, SetPredictor, predictor, session_predictor
from pipeline.tasks.scores import Scores
from pipeline.tasks.task import Task, Tensors

logger = logging.getLogger(__name__)

SECONDS_PER_CANDIDATE = 2.0
"""Of measuring, for each artifact and number of threads."""
STEPS = 16
"""Of a sequence that are timed together, at most."""
V = TypeVar("V")


def benchmark(
    model: Model,
    exported: Sequence[Exported],
    samples: SampleSet,
    *,
    root: Path,
    task: Task | None = None,
    budgets: tuple[Budget, ...] = (),
    batch_size: int = 256,
) -> tuple[OriginalRecord, tuple[TargetRecord, ...]]:
    """Measure the original and every target; what cannot run here is skipped with the reason.

    Args:
        model: The optimized model that was exported, with its original.
        exported: What `export` returned.
        samples: The evaluation set. Nothing is chosen by it. Of a model that keeps states, sequences; latency is then
            that of a step in a loop over one of them.
        root: Artifact paths in the records are relative to this folder.
        task: What the model is for; suggested by the model and the labels when absent.
        budgets: Those that differences to the original are held against.
        batch_size: Samples per forward pass where the batch is dynamic; fewer where memory is short. Latency is always
            taken at batch 1.
    """
    model = with_examples(model, samples)
    task = task_of(model, samples, task)
    samples = for_task(samples, task)
    sample = tuple(value.numpy() for value in example_inputs(model.examples))
    loop = loop_of(model)
    failures = _Failures()
    ready = []
    for item in exported:
        if item.status == "ok" and item.target.cannot_run() is None:
            with failures.caught(item.target.name, "cannot be loaded"):
                ready.append(_Artifacts(item, sample, _Scorer(task, len(samples), samples.labelled, loop)))
    metrics, paired = _score(model, ready, failures, task, samples, batch_size)
    original_latency = _time(_timed(model, samples, loop), ready, failures)
    original = OriginalRecord(
        parameters=count_parameters(model.reference),
        macs=count_macs(model.reference, model.examples),
        size_bytes=sum(tensor.numel() * tensor.element_size() for tensor in model.reference.state_dict().values()),
        metrics=metrics,
        latency=tuple(original_latency),
    )
    measured_by_target = {item.name: item for item in ready}
    return original, tuple(
        _failed(item, failures[item.target.name], root)
        if item.target.name in failures
        else _record(
            item,
            measured_by_target.get(item.target.name),
            root,
            _Original(loop.results if loop else model.outputs, metrics, paired, budgets),
        )
        for item in exported
    )


class _Failures(dict[str, str]):
    """Why the measurement of a target failed, by its name: whatever a runtime raises, the other targets go on."""

    @contextmanager
    def caught(self, target: str, doing: str) -> Iterator[None]:
        """Keep the first failure of what is done inside."""
        try:
            yield
        except Exception as error:
            logger.debug("%s %s", target, doing, exc_info=True)
            self.setdefault(target, f"{doing}: {type(error).__name__}: {first_line(error)}")


@dataclass
class _Run:
    """One artifact under measurement; ``latency`` is filled in per thread count."""

    lowered: Lowered
    session: Session
    predict: Predict
    scores: Scores
    against_original: Comparison
    against_program: Comparison
    latency: list[Latency] = field(default_factory=list)
    paired: Paired | None = None


@dataclass(frozen=True, slots=True)
class _Scorer:
    """What is counted for every artifact."""

    task: Task
    samples: int
    labelled: bool
    loop: Loop | None

    def run(self, lowered: Lowered, session: Session, *, paired: bool = False) -> _Run:
        axis, predict = self.task.class_axis, session_predictor(session)
        return _Run(
            lowered,
            session,
            predict if self.loop is None else self.loop.around(predict),
            Scores(self.task, labelled=self.labelled),
            Comparison(axis),
            Comparison(axis),
            paired=self.pair() if paired else None,
        )

    def pair(self) -> Paired:
        return Paired(self.task, self.samples, labelled=self.labelled)


@dataclass(frozen=True, slots=True)
class _Original:
    """What the original reached, and what its optimized forms are held against."""

    outputs: tuple[str, ...]
    metrics: dict[str, float]
    paired: Paired
    budgets: tuple[Budget, ...]


class _Artifacts:
    """A target's artifacts, loaded with all cores.

    Args:
        sample: One real sample ``(1, …)``.
    """

    def __init__(self, exported: Exported, sample: tuple[Array, ...], scorer: _Scorer) -> None:
        assert exported.optimized is not None
        assert exported.original is not None
        target = exported.target
        self.exported = exported
        self.optimized, self.original = (
            scorer.run(lowered, target.load(lowered, threads=all_cores()), paired=lowered is exported.optimized)
            for lowered in (exported.optimized, exported.original)
        )
        self.variants = {
            variant: scorer.run(lowered, target.load(lowered, threads=all_cores()))
            for variant, lowered in exported.variants.items()
            if isinstance(lowered, Lowered)
        }
        checks, self.unchecked = _cross_checks(target, exported.optimized, sample)
        self.cross_checks = [scorer.run(exported.optimized, check) for check in checks]

    @property
    def name(self) -> str:
        """Its target's."""
        return self.exported.target.name

    def score(self, batch: Batch, expected: tuple[Tensor, ...], quantized: tuple[Tensor, ...]) -> None:
        """Run a batch through every artifact, given the original's outputs and the program's."""
        for run in (self.optimized, *self.cross_checks):
            _score_batch(run, batch, expected, quantized)
        for run in self.of_original:
            _score_batch(run, batch, expected, expected)

    def require_metrics(self) -> None:
        """Refuse metrics that are no numbers, which no report can hold."""
        for run in (self.optimized, *self.cross_checks, *self.of_original):
            for name, value in run.scores.values().items():
                if not math.isfinite(value):
                    raise TargetError(f"{name} is {value} on {run.session.runtime}", where=str(run.lowered.path))

    @property
    def of_original(self) -> tuple[_Run, ...]:
        """The original, in every form."""
        return self.original, *self.variants.values()


def _cross_checks(target: Target, lowered: Lowered, sample: tuple[Array, ...]) -> tuple[list[Session], tuple[str, ...]]:
    """The sessions that check an artifact, and why others are left out; a check that fails says nothing of the file."""
    failures = _Failures()
    checks: tuple[Session | Skipped, ...] = ()
    with failures.caught("cross-checks", "cross-checks left out"):
        checks = target.cross_checks(lowered, sample)
    left_out = [f"{check.runtime} left out: {check.reason}" for check in checks if isinstance(check, Skipped)]
    return [check for check in checks if not isinstance(check, Skipped)], (*left_out, *failures.values())


def _score(
    model: Model, ready: Sequence[_Artifacts], failures: _Failures, task: Task, samples: SampleSet, size: int
) -> tuple[dict[str, float], Paired]:
    """Run the evaluation set once through everything; returns the original's metrics, also sample by sample."""
    modules = (model.reference, model.module)
    original, program = (SetPredictor(of_sequences(module, loop_of(model)), samples) for module in modules)
    of_original = Scores(task, labelled=samples.labelled, compared=False)
    paired = Paired(task, len(samples), labelled=samples.labelled)
    needs = footprint(lambda count: [predictor(each)(example_inputs(model.examples, count)) for each in modules])
    size = affordable_batch("benchmark", needs, min(size, len(samples)))
    with Progress("evaluate", total=len(samples)) as progress:
        for batch in samples.batches(size):
            expected, quantized = original(batch.inputs), program(batch.inputs)
            of_original.update(batch.inputs, expected, expected, batch.labels)
            paired.update(batch.inputs, expected, expected, batch.labels)
            for item in ready:
                if item.name not in failures:
                    with failures.caught(item.name, "cannot run the evaluation samples"):
                        item.score(batch, expected, quantized)
            progress.advance(len(batch.inputs[0]))
    for item in ready:
        if item.name not in failures:
            with failures.caught(item.name, "its accuracy cannot be measured"):
                item.require_metrics()
    return of_original.values(), paired


def _score_batch(run: _Run, batch: Batch, expected: tuple[Tensor, ...], quantized: tuple[Tensor, ...]) -> None:
    outputs = run.predict(batch.inputs)
    run.scores.update(batch.inputs, outputs, expected, batch.labels)
    if run.paired is not None:
        run.paired.update(batch.inputs, outputs, expected, batch.labels)
    run.against_original.update(outputs, expected)
    run.against_program.update(outputs, quantized)


@dataclass(frozen=True, slots=True)
class _Timed:
    """What is timed: a call with one sample or, where a loop is there, its calls over a sequence.

    Attributes:
        steps: Inputs ``(1, …)`` of each call; of one, where there is no loop.
    """

    module: nn.Module
    steps: list[Tensors]
    loop: Loop | None

    @property
    def count(self) -> int | None:
        """Calls in a loop."""
        return len(self.steps) if self.loop else None

    def call(self, run: Callable[[tuple[V, ...]], tuple[V, ...]], steps: Sequence[tuple[V, ...]]) -> object:
        """What is timed of a runtime that takes values of this kind."""
        return run(steps[0]) if self.loop is None else self.loop.through(run, steps)


def _timed(model: Model, samples: SampleSet, loop: Loop | None) -> _Timed:
    """One sample of those that the model carries, or the first steps of a sequence of the evaluation set."""
    if loop is None:
        return _Timed(model.reference, [example_inputs(model.examples)], None)
    sequences = next(samples.take(1).batches(1)).inputs
    begun = tuple(values[:, :STEPS] for values in sequences)
    return _Timed(model.reference, [inputs for inputs, _ in loop.steps(predictor(model.reference), begun)], loop)


def _time(timed: _Timed, ready: Sequence[_Artifacts], failures: _Failures) -> list[Latency]:
    """Time everything at batch 1 with one thread and with all cores; returns the original's latencies in PyTorch."""
    original: list[Latency] = []
    here = [item for item in ready if item.optimized.session.metrics_source == "measured"]
    default_threads = torch.get_num_threads()
    thread_counts = sorted({1, all_cores()})
    try:
        for threads in thread_counts:
            sessions = _sessions(timed, here, failures, threads)
            runs = [(item, run) for item, run, _ in sessions if item.name not in failures]
            candidates = [_eager(timed, threads)]
            candidates += [session for item, _, session in sessions if item.name not in failures]
            taken = interleave(candidates, seconds_per_candidate=SECONDS_PER_CANDIDATE)
            records = [
                measured(
                    runtime=candidate.runtime,
                    device=candidate.device,
                    threads=threads,
                    warmup_ns=warmup,
                    samples_ns=samples,
                    steps=timed.count,
                )
                for candidate, (warmup, samples) in zip(candidates, taken, strict=True)
            ]
            eager, *in_sessions = records
            original.append(eager.model_copy(update={"speedup_vs_original": 1.0}))
            for (item, run), record in zip(runs, in_sessions, strict=True):
                if run is item.original:
                    fp32 = record  # the first of its target's
                speedups = {
                    "speedup_vs_original": eager.median_ns / record.median_ns,
                    "speedup_vs_fp32_same_runtime": fp32.median_ns / record.median_ns,
                }
                run.latency.append(record.model_copy(update=speedups))
    finally:
        torch.set_num_threads(default_threads)
    return original


def _sessions(
    timed: _Timed, here: Sequence[_Artifacts], failures: _Failures, threads: int
) -> list[tuple[_Artifacts, _Run, Candidate]]:
    """What is timed of each target; every candidate has run once."""
    found = []
    for item in here:
        with failures.caught(item.name, f"cannot be timed with {threads} threads"):
            for run in (*item.of_original, item.optimized):
                session = item.exported.target.load(run.lowered, threads=threads)
                candidate = _in_session(session, timed, run.lowered)
                candidate.call()
                found.append((item, run, candidate))
    return found


def _eager(timed: _Timed, threads: int) -> Candidate:
    predict = predictor(timed.module)
    return Candidate(
        runtime=f"torch {torch.__version__} eager",
        device=cpu_name(),
        call=lambda: timed.call(predict, timed.steps),
        prepare=lambda: torch.set_num_threads(threads),
    )


def _in_session(session: Session, timed: _Timed, lowered: Lowered) -> Candidate:
    steps = [
        tuple(tensor.numpy() for tensor in example_inputs(inputs, lowered.batch_size or 1)) for inputs in timed.steps
    ]
    return Candidate(runtime=session.runtime, device=session.device, call=lambda: timed.call(session.run, steps))


def _record(exported: Exported, result: _Artifacts | None, root: Path, before: _Original) -> TargetRecord:
    target = exported.target
    if exported.optimized is None or exported.original is None:
        return TargetRecord(
            target=target.name, status=exported.status, reason=exported.reason, verified=exported.verified
        )
    lowered = exported.optimized
    placement, estimates, notes = _known(target, lowered)
    common = {
        "target": target.name,
        "status": "ok",
        "artifact": artifact_record(lowered.path, root),
        "fp32_artifact": artifact_record(exported.original.path, root),
        "placement": placement,
        "verified": exported.verified,
        "notes": (*lowered.notes, *notes, *(() if result is None else result.unchecked)),
    }
    if result is None:
        reason = target.cannot_run()
        assert reason is not None  # it was not loaded because it cannot run
        here = Skipped(runtime=target.name, device=cpu_name(), reason=reason)
        variants = tuple(_variant(name, made, None, root) for name, made in exported.variants.items())
        return TargetRecord(**common, metrics_skipped=reason, latency=(here, *estimates), variants=variants)
    optimized, original = result.optimized, result.original
    return TargetRecord(
        **common,
        metrics=optimized.scores.values(),
        differences=_differences(before, optimized),
        fidelity=_fidelity(before.outputs, optimized.against_original),
        metrics_source=optimized.session.metrics_source,
        fp32_metrics=original.scores.values(),
        parity=_parity(optimized.against_program),
        latency=(*optimized.latency, *estimates),
        fp32_latency=tuple(original.latency),
        cross_checks=tuple(
            CrossCheck(
                runtime=run.session.runtime,
                metrics=run.scores.values(),
                parity=_parity(run.against_program),
            )
            for run in result.cross_checks
        ),
        variants=tuple(
            _variant(name, made, result.variants.get(name), root) for name, made in exported.variants.items()
        ),
    )


def _known(target: Target, lowered: Lowered) -> tuple[Placement | None, tuple[Latency, ...], tuple[str, ...]]:
    """Placement and estimates of a file, and what of them failed: neither is worth losing the measurements."""
    failures = _Failures()
    placement, estimates = None, tuple[Latency, ...]()
    with failures.caught("placement", "its operators cannot be placed"):
        placement = target.placement(lowered)
    with failures.caught("estimates", "its latency cannot be estimated"):
        estimates = target.estimates(lowered)
    return placement, estimates, tuple(failures.values())


def _failed(exported: Exported, reason: str, root: Path) -> TargetRecord:
    """The record of a target whose files were written, and could not be measured."""
    assert exported.optimized is not None
    assert exported.original is not None
    return TargetRecord(
        target=exported.target.name,
        status="failed",
        reason=reason,
        artifact=artifact_record(exported.optimized.path, root),
        fp32_artifact=artifact_record(exported.original.path, root),
        verified=exported.verified,
        notes=exported.optimized.notes,
    )


def _variant(name: Variant, made: Lowered | str, run: _Run | None, root: Path) -> VariantRecord:
    """A comparison's record; ``run`` is None where nothing here can run it."""
    if isinstance(made, str):
        return VariantRecord(variant=name, status="skipped", reason=made)
    record = VariantRecord(variant=name, status="ok", artifact=artifact_record(made.path, root))
    if run is None:
        return record
    return record.model_copy(
        update={
            "metrics": run.scores.values(),
            "metrics_source": run.session.metrics_source,
            "latency": tuple(run.latency),
        }
    )


def _differences(before: _Original, after: _Run) -> tuple[DifferenceRecord, ...]:
    """Each metric's difference to the original, and what its interval says of the budget."""
    assert after.paired is not None
    infos = {spec.name: spec.info for spec in before.paired.specs}
    return tuple(_difference(infos[found.metric], found, before) for found in differences(before.paired, after.paired))


def _difference(info: MetricInfo, found: Difference, before: _Original) -> DifferenceRecord:
    """One metric's; a budget is met where even the worse end of the interval is within it."""
    record = DifferenceRecord(**asdict(found))
    budget = next((each for each in before.budgets if each.metric == info.name), None)
    if budget is None:
        return record
    baseline = before.metrics.get(info.name, info.original_value or 0.0)
    allowed = info.allowed(baseline, budget.max_drop, budget.max_drop_relative)
    best, worst = sorted(info.drop(0.0, end) for end in (found.low, found.high))
    verdict: Sureness = "met" if worst <= allowed else "exceeded" if best > allowed else "unsure"
    enough = samples_to_tell(found, info.drop(0.0, found.value), allowed) if verdict == "unsure" else None
    return record.model_copy(update={"verdict": verdict, "enough_samples": enough})


def _fidelity(names: Sequence[str], comparison: Comparison) -> dict[str, OutputFidelity]:
    return {
        name: OutputFidelity(
            sqnr_db=None if output.sqnr_db == float("inf") else output.sqnr_db,
            cosine=output.cosine,
            max_abs_error=output.max_abs_error,
        )
        for name, output in zip(names, comparison.outputs, strict=True)
    }


def _parity(comparison: Comparison) -> Parity:
    sqnr = comparison.sqnr_db
    return Parity(
        sqnr_db=None if sqnr == float("inf") else sqnr,
        max_abs_error=comparison.max_abs_error,
        top1_agreement=comparison.agreement,
    )


def artifact_record(path: Path, root: Path) -> ArtifactRecord:
    """Size and hash of a file, or of all files of an artifact that has several."""
    files = files_of(path)
    digest = hashlib.sha256()
    for file in files:
        if path.is_dir():
            digest.update(file.relative_to(path).as_posix().encode())
        digest.update(file.read_bytes())
    return ArtifactRecord(
        path=path.relative_to(root).as_posix(),
        size_bytes=sum(file.stat().st_size for file in files),
        sha256=digest.hexdigest(),
    )
