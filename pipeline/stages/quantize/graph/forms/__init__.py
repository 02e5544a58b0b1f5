"""Forms: one rewrite per file, with the rule it follows. A rewrite does not change what the graph computes.

A decomposition (`silu`, `hardsigmoid`, `attention`) replaces an operator while the graph is traced again; the others
edit the graph in place.
"""
