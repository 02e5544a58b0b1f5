"""Stages: each a verb and a recipe key. A stage takes a model and returns a new one."""
