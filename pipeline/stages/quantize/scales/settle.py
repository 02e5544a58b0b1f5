"""Settling: adjust the chosen grids so that every runtime rounds the same way."""

from __future__ import annotations

import logging

from torch.fx import GraphModule

from pipeline.stages.quantize.scales.products import round_alike, self_products_of
from pipeline.stages.quantize.scales.sums import avoid_ties, sums_of

logger = logging.getLogger(__name__)


def settle_scales(prepared: GraphModule) -> None:
    """Widen the grids of a prepared graph where runtimes would round differently.

    First those of additions, then those of products like SiLU's. Each of the two enlarges a scale by at most 1/32.
    """
    sums, products = sums_of(prepared), self_products_of(prepared)
    growth = avoid_ties(sums)
    for product in products:
        round_alike(product, growth.get(product.result))
    logger.debug("settled the scales of %d additions and %d products", len(sums), len(products))
