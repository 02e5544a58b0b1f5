"""Graph: the canonical form of a network, and what integer kernels can do with it."""
