"""This machine: what its processor is, how much memory is left, and how long calls take on it."""
