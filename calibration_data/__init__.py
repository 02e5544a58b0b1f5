"""Small real data sets and the demo's checkpoint, each with its source and licence."""
