"""What DeepSpeed runs and this planner cannot count yet: said, never guessed."""

from collections.abc import Iterator

from planner.engines.deepspeed.refusal import Case, Refusal, Rule
from planner.layout.experts import expert_holder


def limits(case: Case) -> tuple[Refusal, ...]:
    """Everything in this combination that is not modelled; empty if all of it is."""
    return tuple(limit for rule in _RULES for limit in rule(case))


def _unknown(key: str, what: str, mend: str) -> Refusal:
    return Refusal(key, f"{what} is not modelled yet", "", mend)


def _inventory(case: Case) -> Iterator[Refusal]:
    if case.model.inventory_only:
        yield Refusal(
            "model",
            f"{case.model.name} is an imported inventory, which does not say what its layers save",
            "",
            "use `planner params` for it, or plan a model of a known family",
        )


def _vision(case: Case) -> Iterator[Refusal]:
    """Text alone does not go through an image tower, so its parameters get no gradient."""
    stem = case.model.stem.layer.parameters
    if any(parameter.component == "vision" for parameter in stem):
        yield Refusal(
            "model",
            f"{case.model.name} has an image tower, and what that allocates is not modelled yet",
            "",
            "use `planner params` for it, or plan the text model alone",
        )


def _recompute(case: Case) -> Iterator[Refusal]:
    training = case.training
    if training.recompute == "selective" and training.implementation == "hf":
        yield Refusal(
            "training.recompute",
            "transformers' layers have no selective recomputation",
            "",
            "use none or full, or implementation: reference",
        )
    if case.deepspeed.pipeline.activation_checkpoint_interval:
        yield Refusal(
            "deepspeed.pipeline.activation_checkpoint_interval",
            "the planner counts one checkpoint a block, and not by this key",
            "",
            "leave it out and use training.recompute: full",
        )


def _experts(case: Case) -> Iterator[Refusal]:
    if case.mlps and expert_holder(case.layout, case.deepspeed) == "moe" and case.num_experts:
        yield _unknown("deepspeed.expert_engine", "what DeepSpeed's MoE layer saves", "use autoep")


def _sequence(case: Case) -> Iterator[Refusal]:
    if case.layout.sp > 1 and case.training.implementation == "megatron":
        yield _unknown(
            "layout.sp", "what Ulysses saves around Megatron-like layers", "use implementation: hf"
        )


_RULES: tuple[Rule, ...] = (_inventory, _vision, _recompute, _experts, _sequence)
