"""Doors for checkpoints, one file a kind. Each turns a file into a module; `pipeline.models.load` knows them all."""
