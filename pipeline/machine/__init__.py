"""This machine: what its processor is, and how long calls take on it."""
