"""The keyword demo: a depthwise CNN that hears which of ten words was spoken."""
