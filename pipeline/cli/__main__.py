"""``python -m pipeline.cli``: the same as the command."""

from pipeline.cli import command

command()
