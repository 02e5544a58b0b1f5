"""Tasks: what a model is for. One file a task; today there is classification.

`prediction` runs any model on tensors, `comparison` measures its outputs, `evaluation` does both over a sample set.
"""
