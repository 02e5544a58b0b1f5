import time

from pipeline.machine.timing import ROUNDS, WARMUP_RUNS, Candidate, interleave


def test_interleave_takes_blocks_in_turns_when_there_are_several_candidates() -> None:
    order: list[str] = []
    candidates = [
        Candidate(runtime=name, device="test", call=lambda name=name: order.append(name)) for name in ("fast", "slow")
    ]
    taken = interleave(candidates, seconds_per_candidate=1e-9)  # so little that each block has the fewest runs: 3
    assert [(len(warmup), len(samples)) for warmup, samples in taken] == [(WARMUP_RUNS, 3 * ROUNDS)] * 2
    block = 3 + 1  # one more call is not timed: it fills the caches
    turns = order[2 * WARMUP_RUNS :]
    assert turns == (["fast"] * block + ["slow"] * block) * ROUNDS


def test_interleave_measures_durations_when_calls_sleep() -> None:
    taken = interleave([Candidate(runtime="", device="", call=lambda: time.sleep(0.002))], seconds_per_candidate=0.06)
    ((_, samples),) = taken
    assert min(samples) >= 2_000_000
    assert len(samples) == 30


def test_interleave_takes_as_many_runs_as_asked_and_keeps_every_sample() -> None:
    order: list[str] = []
    candidates = [
        Candidate(
            runtime=name,
            device="test",
            call=lambda name=name: order.append(name),
            prepare=lambda name=name: order.append(name.upper()),
        )
        for name in ("a", "b")
    ]
    taken = interleave(candidates, warmup_runs=2, rounds=2, runs=3)
    assert "".join(order) == "Aaa" + "Bbb" + ("A" + "a" * 4 + "B" + "b" * 4) * 2
    assert [(len(first), len(rest)) for first, rest in taken] == [(2, 6)] * 2
    assert all(sample > 0 for _, rest in taken for sample in rest)
