"""``python -m tests.torture models --count 1000 --seed 0``: one of the modules here, by its name."""

import runpy
import sys

if len(sys.argv) < 2:
    sys.exit(__doc__)
name = sys.argv.pop(1)
runpy.run_module(f"tests.torture.{name}", run_name="__main__", alter_sys=True)
