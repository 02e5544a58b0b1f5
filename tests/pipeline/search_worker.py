"""One worker of a shared study, run by test_search.py: ``search_worker.py recipe.yaml out trials``."""

from __future__ import annotations

import sys
from pathlib import Path

import pipeline.search
from pipeline.recipe import read_recipe
from pipeline.search import parse_objective, search

if __name__ == "__main__":
    pipeline.search._HEARTBEAT_S = 1  # so that the test need not wait a minute for a dead worker's trial
    path, out, trials = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    search(read_recipe(path), out, trials=trials, objectives=[parse_objective("size:onnx")], root=path.parent)
