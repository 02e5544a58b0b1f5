"""The report of a run: its model, its HTML rendering, and the comparison of two."""
