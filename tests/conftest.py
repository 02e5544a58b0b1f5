"""One thread per test process: tests run in parallel, and a tiny network gains nothing from a second thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the processes that tests start
