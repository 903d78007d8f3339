"""What a term is made of, in words that can be checked."""

from typing import NamedTuple

from planner.memory.terms import Term


class Note(NamedTuple):
    """One reason why a term is as large as it is."""

    term: Term
    formula: str
    """The formula with its numbers, e.g. ``2 B * 8,030,261,248 parameters``."""
    source: str
    """File and line of the code that allocates it."""
