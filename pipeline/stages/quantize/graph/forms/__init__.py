"""Forms: one rewrite a file, each with the rule it follows. A rewrite keeps the function that the graph computes.

A decomposition (`silu`, `hardsigmoid`, `attention`) replaces an operator while the graph is traced once more; the
others edit the graph in place.
"""
