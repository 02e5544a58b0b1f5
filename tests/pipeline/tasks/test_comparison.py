import numpy as np
import pytest
import torch

from pipeline.tasks.comparison import Comparison, sqnr_db


def test_sqnr_db_equals_numpy_when_outputs_are_random() -> None:
    rng = np.random.default_rng(0)
    reference, tested = rng.normal(size=(5, 7)), rng.normal(size=(5, 7))
    expected = 10 * np.log10((reference**2).sum() / ((reference - tested) ** 2).sum())
    assert np.isclose(sqnr_db(torch.from_numpy(reference), torch.from_numpy(tested)), expected)


def test_comparison_gives_exact_ratios_when_batches_have_different_sizes() -> None:
    comparison = Comparison(class_axis=1)
    logits = torch.eye(3).repeat(3334, 1)[:10_000]
    reference = logits * 2
    reference[:7] = reference[:7].roll(1, 1)
    for start in range(0, 10_000, 192):
        part = slice(start, start + 192)
        comparison.update((logits[part],), (reference[part],))
    assert comparison.agreement == 0.9993
    assert comparison.max_abs_error == 2.0


def test_comparison_measures_each_output_alone_when_their_sizes_differ() -> None:
    comparison = Comparison()
    small, large = torch.tensor([[0.3, 0.4]]), torch.tensor([[300.0, 400.0]])
    comparison.update((small * 0.9, large), (small, large))
    assert comparison.agreement is None
    assert [output.sqnr_db for output in comparison.outputs] == [pytest.approx(20.0, abs=1e-4), float("inf")]
    assert comparison.sqnr_db > 70
    assert [output.cosine for output in comparison.outputs] == [pytest.approx(1.0), 1.0]


def test_comparison_takes_integers_and_truth_values_when_outputs_are_such() -> None:
    for answers in (torch.tensor([[1, 0], [2, 1]]), torch.tensor([[True, False], [False, True]])):
        comparison = Comparison()
        comparison.update((answers,), (answers,))
        assert comparison.agreement is None
        assert comparison.sqnr_db == float("inf")
