"""How each test architecture is pruned to half its multiply-accumulates."""

from __future__ import annotations

from pipeline.recipe import PruneConfig

_DEEP = ("vit", "bert")  # their own code fixes the width of a head, so half of their blocks leave instead


def to_half(name: str) -> PruneConfig:
    return PruneConfig(macs_ratio=0.5, round_to=1, blocks_ratio=0.5 if name in _DEEP else None)
