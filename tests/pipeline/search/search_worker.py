"""One worker of a shared study, run by test_study.py: ``search_worker.py recipe.yaml out trials storage``."""

from __future__ import annotations

import sys
from pathlib import Path

import pipeline.search.study
from pipeline.execution.apply import run
from pipeline.recipe import read_recipe
from pipeline.search.objectives import parse_objective
from pipeline.search.study import search

if __name__ == "__main__":
    pipeline.search.study._HEARTBEAT_S = 1  # so that the test need not wait a minute for a dead worker's trial
    path, out, trials, storage = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    objectives = [parse_objective("size:onnx", [])]
    search(read_recipe(path), out, run=run, trials=trials, objectives=objectives, root=path.parent, storage=storage)
