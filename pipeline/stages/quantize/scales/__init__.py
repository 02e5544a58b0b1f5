"""Scales: the grids on which integers represent real numbers."""
