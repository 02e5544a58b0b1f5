"""Scales: the grids on which integers stand for real numbers."""
