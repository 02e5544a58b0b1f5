"""Ranges: what calibration keeps of each tensor, and how its range is chosen."""
