from dataclasses import replace

import numpy as np
import optuna
import torch
from PIL import Image

from pipeline.core import Preprocessing, TensorSpec
from pipeline.data.labels import mask
from pipeline.data.open import open_samples
from pipeline.execution.prepare import check
from pipeline.models.load import load
from pipeline.recipe import parse_recipe
from pipeline.search.trials import judged_on_training_data, propose
from tests.pipeline.conftest import Project


def test_judged_recipe_never_sees_the_evaluation_set_when_it_is_prepared(project: Project) -> None:
    recipe = parse_recipe(project.recipe)
    (project.folder / "test.npz").unlink()  # nothing may read it
    prepared = check(judged_on_training_data(recipe), project.folder)
    assert len(prepared.evaluation) == 102  # a fifth of 512
    fitted = {tensor.numpy().tobytes() for batch in prepared.train.batches(64) for tensor in batch.inputs[0]}
    judged = {tensor.numpy().tobytes() for batch in prepared.evaluation.batches(64) for tensor in batch.inputs[0]}
    assert fitted.isdisjoint(judged)


def test_judged_recipe_can_be_prepared_when_the_program_says_what_it_takes(project: Project) -> None:
    loaded = load(parse_recipe(project.recipe).model, project.folder)
    arguments, batch = (torch.randn(2, *loaded.inputs[0].shape),), ({0: torch.export.Dim("batch")},)
    torch.export.save(
        torch.export.export(loaded.module, arguments, dynamic_shapes=batch), project.folder / "program.pt2"
    )
    project.recipe |= {"model": {"checkpoint": "program.pt2", "expect": {}}, "stages": [{"quantize": {}}]}
    prepared = check(judged_on_training_data(parse_recipe(project.recipe)), project.folder)
    assert prepared.train is not None
    assert len(prepared.evaluation) == 102


def test_calibration_of_a_trial_holds_no_sample_that_the_trial_is_judged_on(project: Project) -> None:
    project.recipe["data"]["calibration"]["limit"] = 100
    prepared = check(judged_on_training_data(parse_recipe(project.recipe)), project.folder)
    assert prepared.calibration is not None
    assert not set(prepared.calibration.indices) & set(prepared.evaluation.indices)


def test_propose_replaces_only_what_is_searched_when_a_trial_suggests(project: Project) -> None:
    recipe = parse_recipe(project.recipe)
    settings = {"0.prune.macs_ratio": 0.3, "0.prune.importance": "taylor", "0.prune.allocation": "importance"}
    settings |= {"1.distill.temperature": 8.0, "1.distill.alpha": 0.5, "1.distill.learning_rate": 0.1}
    proposed = propose(recipe, optuna.trial.FixedTrial({**settings, "2.quantize.observers": "output_mse"}))
    prune, distill, quantize = (step.config for step in proposed.stages)
    assert (prune.macs_ratio, prune.importance, distill.temperature) == (0.3, "taylor", 8.0)
    assert quantize.observers == ("output_mse",)
    assert distill.epochs == recipe.stages[1].config.epochs
    assert proposed.model_copy(update={"stages": recipe.stages}) == recipe


def test_parts_of_training_data_keep_labels_of_any_form(project: Project) -> None:
    random = np.random.default_rng(0)
    (project.folder / "photos").mkdir()
    (project.folder / "masks").mkdir()
    for index in range(10):
        size = (int(random.integers(9, 20)), int(random.integers(9, 20)))
        Image.new("L", size, index).save(project.folder / f"photos/{index}.png")
        Image.new("L", size, index % 3).save(project.folder / f"masks/{index}.png")
    sets = {"folder": "photos", "masks": "masks"}
    recipe = parse_recipe({**project.recipe, "data": {"evaluation": sets, "train": sets}})
    data = judged_on_training_data(recipe).data
    spec = TensorSpec(name="image", shape=(1, 8, 8))
    seen = []
    for part in (data.train, data.evaluation):
        assert part is not None
        samples = open_samples(part, (spec,), Preprocessing(resize=(8, 8)), name="part", root=project.folder)
        batch = next(replace(samples, form=mask(3, 8, 8)).batches(10))
        assert batch.labels is not None
        seen += batch.inputs[0][:, 0, 0, 0].round().int().tolist()
        assert batch.labels[:, 7, 7].tolist() == (batch.inputs[0][:, 0, 0, 0].round() % 3).tolist()
    assert sorted(seen) == list(range(10))
    unlabelled = parse_recipe({**project.recipe, "data": {"evaluation": sets, "train": {**sets, "labels": None}}})
    train = judged_on_training_data(unlabelled).data.train
    assert train is not None
    assert not open_samples(train, (spec,), Preprocessing(resize=(8, 8)), name="part", root=project.folder).labelled
