"""Improve: what raises the accuracy of the integer network without training."""
