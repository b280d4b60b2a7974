"""What was probably meant by a word that is not known."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that looks most like another one, whatever its capitals, or begins with it; None if none does."""
    lower = {name.lower(): name for name in known}
    longer = [name for name in lower if len(word) > 2 and name.startswith(word.lower())]
    close = get_close_matches(word.lower(), lower, n=1, cutoff=0.7) or longer
    return lower[close[0]] if close else None


def did_you_mean(word: str | None) -> str:
    """The end of a sentence."""
    return f": did you mean {word}?" if word else "."
