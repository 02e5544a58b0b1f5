"""Prune: structured pruning of channels and residual blocks under budgets."""

from pipeline.stages.prune.stage import prune

__all__ = ["prune"]
