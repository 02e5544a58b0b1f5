"""``python -m edgewright``, and what the command ``edgewright`` calls."""

from pipeline.cli import command

__all__ = ["command"]

if __name__ == "__main__":
    command()
