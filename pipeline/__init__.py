"""edgewright: from a trained FP32 PyTorch model to small, fast, proven INT8 models.

Every stage is a function that other projects can call. ``__init__.pyi`` lists the public names; each is imported when
it is first used, so that ``import pipeline`` takes milliseconds and needs no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
