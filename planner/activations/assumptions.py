"""What is not known for sure about the activations of a family."""

from planner.model.description import Model

VERIFIED = frozenset(
    {
        "gemma", "glm", "glm4", "gpt2", "gpt_neox", "llama", "mistral", "mixtral", "olmo2", "opt",
        "phi", "phi3", "deepseek_v3", "qwen2", "qwen2_moe", "qwen3_moe", "starcoder2",
    }
)  # fmt: skip
"""Families whose tape equals a real run of transformers 5.23, allocation by allocation."""


def activation_assumptions(model: Model) -> tuple[str, ...]:
    """One sentence where the family's tape was not found equal to a real run; else nothing."""
    if model.family in VERIFIED:
        return ()
    return (f"activations of {model.family} follow its blocks' code; not found equal to a run",)
