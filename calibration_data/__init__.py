"""Small real data sets and the demos' checkpoints, each with its source and licence."""
