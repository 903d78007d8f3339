"""What a model's forward pass holds on to by its variables, and lets go of when it returns.

Sources, transformers 5.23: the ``forward`` of each family's model; line numbers where they matter.
"""

from planner.activations.eager import Machine
from planner.activations.programs.case import Case
from planner.activations.programs.shared import Kind, Shared, passing, unused
from planner.memory.terms import Term
from planner.units import ceil_div

LEAVES_WITH_NAME = {"phi", "bert"}
"""The embedded tokens have no name of their own that the model's forward keeps."""
NO_DROPOUT = {"phi3"}
"""The configuration has a dropout of the embedding that the code does not apply."""


def held_by_model(case: Case) -> list[Kind]:
    """Shapes and dtypes of what `hf_stems.hold` holds, for a layer that is not the stem."""
    stem = case.stem
    if stem is None:
        return []
    whole = (case.batch, case.length, case.hidden_size)
    if stem.positions == "learned" and not stem.token_types:
        rows = case.batch if case.family == "opt" else 1
        counted: list[Kind] = [(whole[:2], "fp32")] if case.family == "opt" else []
        return [*counted, (whole, case.dtype), ((rows, *whole[1:]), case.dtype)]
    silent = case.family in NO_DROPOUT | LEAVES_WITH_NAME or stem.embedding_norm
    if not silent and case.probability(stem.hidden_dropout):
        return [(whole, case.dtype)]
    return []


def leave_blocks(m: Machine, case: Case) -> None:
    """After the last norm: what was held for the forward pass only goes."""
    if case.stem_kept:
        m.strike((case.batch, case.length, case.hidden_size), case.dtype)
    if case.layout.pp > 1:
        return
    if case.recomputed:
        for shape, dtype in unused(case):
            m.book(m.external(shape, dtype), Term.ACTIVATIONS)
    gone = _last_weights(case) if case.recomputed else passing(case)
    for shape, dtype in (*gone, *held_by_model(case)):
        m.strike(shape, dtype)


RETURNS_WEIGHTS = {"bloom", "falcon"}
"""The model's variable holds what a block has returned, attention weights included, until the next
block has (modeling_bloom.py:512, modeling_falcon.py:775)."""


def hold_returned(m: Machine, case: Case, shared: Shared) -> None:
    """After a block: the variable takes up its weights and lets those before go.

    Without recomputation the block saves them anyway.
    """
    if case.recomputed and case.layout.pp == 1:
        for weights in shared.returned:
            m.disown(weights)
            if not case.boundary:
                m.strike(weights.shape, weights.dtype)
    shared.returned.clear()


def _last_weights(case: Case) -> list[Kind]:
    if case.family not in RETURNS_WEIGHTS or case.kernel != "eager":
        return []
    length = case.training.sequence_length
    heads = ceil_div(case.attention.num_heads, case.layout.tp)
    return [((case.batch, heads, length, length), case.dtype)]
