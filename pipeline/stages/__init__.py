"""Stages: each a verb, a file, a command and a recipe key. A stage takes an artifact and returns a new one."""
