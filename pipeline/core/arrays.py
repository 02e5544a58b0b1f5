"""The type of a NumPy array, for annotations: NumPy's own needs two parameters every time."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
