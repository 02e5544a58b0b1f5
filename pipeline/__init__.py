"""edgewright: from a trained FP32 PyTorch model to small, fast, proven INT8 models."""
