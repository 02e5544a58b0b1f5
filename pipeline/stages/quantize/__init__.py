"""The quantize stage: static INT8 with PT2E, our own annotator and calibration, and an accuracy-driven choice."""

import logging
import warnings

# torchao warns of missing GPU libraries, and torch of a name that torchao uses: users can act on neither.
for _logger in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_logger).setLevel(logging.ERROR)
# Copying a GraphModule raises a deprecation warning that concerns torch alone.
warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning, module="copyreg")

from pipeline.stages.quantize.stage import QatModule, convert, prepare_qat, quantize  # noqa: E402

__all__ = ["QatModule", "convert", "prepare_qat", "quantize"]
