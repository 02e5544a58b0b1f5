"""Tasks: what a model is for, and how well it does it.

`task` says what a task is, `builtin` has one file for each, and `lookup` finds the one that a run is about.
`prediction` runs any model on tensors, `comparison` measures outputs, `scores` a task's metrics, `evaluation` both over
a sample set, and `differences` says how sure a difference between two models is.
"""
