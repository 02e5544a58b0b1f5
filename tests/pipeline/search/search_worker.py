"""One worker of a shared study, run by test_search.py: ``search_worker.py recipe.yaml out trials storage``."""

from __future__ import annotations

import sys
from pathlib import Path

import pipeline.search.study
from pipeline.recipe import read_recipe
from pipeline.search.study import parse_objective, search

if __name__ == "__main__":
    pipeline.search.study._HEARTBEAT_S = 1  # so that the test need not wait a minute for a dead worker's trial
    path, out, trials, storage = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    objectives = [parse_objective("size:onnx")]
    search(read_recipe(path), out, trials=trials, objectives=objectives, root=path.parent, storage=storage)
