"""The command, with timings so short that a run which is killed again and again still ends soon.

The estimate of the space is off, so that the disk is full in the middle of a run and not before it. As in the command
itself, nothing heavy is imported before the process that answers signals has forked the one that works.
"""

import sys

from pipeline.cli import main
from pipeline.cli.supervisor import supervised


def work() -> None:
    from pipeline.execution import apply
    from pipeline.stages import benchmark

    benchmark.SECONDS_PER_CANDIDATE = 0.02
    apply.SMALL_FILES_BYTES = 0
    main()


if __name__ == "__main__":
    heavy = {"torch", "numpy"} & set(sys.modules)
    assert not heavy, f"the command imports {heavy} before it can answer signals"
    supervised(work)
