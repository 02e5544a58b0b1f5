import csv
from pathlib import Path

from pipeline.training.log import TrainingLog


def rows(path: Path) -> list[list[str]]:
    return list(csv.reader(path.open()))


def test_log_holds_a_row_per_step_and_per_epoch_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "run" / "training.csv"
    with TrainingLog(path) as log:
        log.write(1, 1, 0.5, 0.01)
        assert len(rows(path)) == 2  # can be watched
        log.write(1, None, 0.25, metric=0.75)
    assert rows(path) == [
        ["epoch", "step", "loss", "learning_rate", "metric"],
        ["1", "1", "0.5", "0.01", ""],
        ["1", "", "0.25", "", "0.75"],
    ]


def test_log_forgets_what_came_after_the_kept_bytes_when_it_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "training.csv"
    with TrainingLog(path) as log:
        log.write(1, 1, 0.5, 0.01)
        kept = log.size
        log.write(1, 2, 0.4, 0.02)
    with TrainingLog(path, keep_bytes=kept) as log:
        log.write(1, 2, 0.3, 0.03)
    assert [row[2] for row in rows(path)] == ["loss", "0.5", "0.3"]
    with TrainingLog(path):
        pass
    assert len(rows(path)) == 1


def test_log_writes_nothing_when_it_has_no_path() -> None:
    with TrainingLog(None) as log:
        log.write(1, 1, 0.5)
        assert log.size == 0
