"""What the command lines do; `load` is for notebooks too."""

from scoresde.commands.load import load

__all__ = ["load"]
