import numpy as np
import torch

from pipeline.tasks.comparison import Comparison, sqnr_db


def test_sqnr_db_equals_numpy_when_outputs_are_random() -> None:
    rng = np.random.default_rng(0)
    reference, tested = rng.normal(size=(5, 7)), rng.normal(size=(5, 7))
    expected = 10 * np.log10((reference**2).sum() / ((reference - tested) ** 2).sum())
    assert np.isclose(sqnr_db(torch.from_numpy(reference), torch.from_numpy(tested)), expected)


def test_comparison_gives_exact_ratios_when_batches_have_different_sizes() -> None:
    comparison = Comparison()
    logits = torch.eye(3).repeat(3334, 1)[:10_000]
    labels = logits.argmax(1)
    labels[:7] = (labels[:7] + 1) % 3
    for start in range(0, 10_000, 192):
        part = slice(start, start + 192)
        comparison.update((logits[part],), (logits[part] * 2,), labels[part])
    assert comparison.top1 == 0.9993
    assert comparison.agreement == 1.0
    assert comparison.max_abs_error == 1.0


def test_comparison_has_no_classification_metrics_when_outputs_are_images() -> None:
    comparison = Comparison()
    comparison.update((torch.zeros(2, 3, 4, 4),), (torch.ones(2, 3, 4, 4),))
    assert comparison.metrics() == {}
    assert comparison.sqnr_db == 0.0


def test_comparison_has_no_classification_metrics_when_outputs_are_not_floats() -> None:
    for answers in (torch.tensor([[1, 0], [2, 1]]), torch.tensor([[True, False], [False, True]])):
        comparison = Comparison()
        comparison.update((answers,), (answers,))
        assert comparison.metrics() == {}
        assert comparison.sqnr_db == float("inf")
