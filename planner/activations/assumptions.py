"""What is not known for sure about the activations of a family."""

from planner.model.description import Model

UNVERIFIED = frozenset({"qwen"})
"""The first Qwen, whose code came with its checkpoints and is not in transformers 5.23; the others'
tapes equal real runs, allocation by allocation, with and without recomputation."""


def activation_assumptions(model: Model) -> tuple[str, ...]:
    """One sentence where the family's tape was not found equal to a real run; else nothing."""
    if model.family not in UNVERIFIED:
        return ()
    return (f"activations of {model.family} follow its blocks' code; not found equal to a run",)
