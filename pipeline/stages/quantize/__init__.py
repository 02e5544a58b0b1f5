"""Quantize: our own INT8 annotator for PT2E, calibration, and the accuracy-driven search around them."""

import logging
import warnings

# torchao reports GPU libraries it does not need here, and torch a rename inside torchao: neither is for our user.
for _logger in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_logger).setLevel(logging.ERROR)
# torch's own GraphModule trips over torch's own deprecation whenever it is copied.
warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning, module="copyreg")

from pipeline.stages.quantize.stage import quantize  # noqa: E402

__all__ = ["quantize"]
