"""Models: doors for checkpoints, capture as a graph, and storage of modules whose layers changed size."""
