"""The command, with timings so short that a run which is killed again and again still ends soon.

The estimate of the space is off, so that the disk is full in the middle of a run and not before it.
"""

from pipeline.cli import command
from pipeline.execution import apply
from pipeline.stages import benchmark

if __name__ == "__main__":
    benchmark.SECONDS_PER_CANDIDATE = 0.02
    apply.SMALL_FILES_BYTES = 0
    command()
