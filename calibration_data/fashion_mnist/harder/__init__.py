"""Three small networks that are harder to quantize than the demo's: depthwise convolutions, clamps, squeeze-excite."""
