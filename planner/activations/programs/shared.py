"""What a model makes once and hands to all its blocks: position ids, embeddings of them, masks.

With pipeline stages nothing but hidden states goes from layer to layer, so each block makes its
own. Sources, transformers 5.23: LlamaModel.forward and LlamaRotaryEmbedding.forward in
models/llama/modeling_llama.py; eager_mask in masking_utils.py.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from planner.activations.eager import Machine, Tensor, cat, empty, like, scale, to
from planner.activations.programs.case import Case
from planner.memory.terms import Term

Kind = tuple[tuple[int, ...], str]


@dataclass(slots=True, kw_only=True)
class Shared:
    """Handles on what is shared; a block that gets none makes or imagines its own."""

    saved: list[Tensor] = field(default_factory=list)
    """cos and sin: the blocks save them, so they live until the blocks' backward is over."""
    passing: list[Tensor] = field(default_factory=list)
    """Position ids and the mask: alive until the last norm has run; with recomputation until the
    blocks' backward is over, since every checkpoint keeps its arguments."""
    returned: list[Tensor] = field(default_factory=list)
    """What a block returns beside hidden states, if its model's variable holds it."""

    def position_embeddings(self, m: Machine, case: Case) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (1, S, D)."""
        if self.saved:
            return self.saved[0], self.saved[-1]
        if case.layout.pp > 1:
            return make_position_embeddings(m, case)
        shape = rotary_shape(case)
        dtype = rotary_dtype(case)
        return m.uncounted(shape, dtype), m.uncounted(shape, dtype)

    def attention_mask(self, m: Machine, case: Case) -> Tensor | None:
        """What eager attention adds to its scores."""
        if not case.masked:
            return None
        if case.layout.pp > 1:
            return make_mask(m, case)
        return m.uncounted((case.batch, *case.mask_shape[1:]), case.mask_dtype)


def rotary_shape(case: Case) -> tuple[int, ...]:
    """Of cos and sin; gpt-oss, which has sinks, makes half of them."""
    size = case.rotary_size // 2 if case.attention.sinks else case.rotary_size
    # Ulysses wants position ids from the caller, one row a sequence.
    rows = case.batch if case.layout.sp > 1 else 1
    return (rows, case.length, size)


def rotary_dtype(case: Case) -> str:
    """Of cos and sin; OLMo 2 does not cast them (modeling_olmo2.py:108), nor DeepSeek-V2."""
    return "fp32" if case.family in {"olmo2", *COMPLEX_ROTATION} else case.dtype


COMPLEX_ROTATION = {"deepseek_v2"}
"""cos and sin are the parts of one complex number (modeling_deepseek_v2.py:207), 8 B."""


def make_shared(m: Machine, case: Case) -> Shared:
    """What the model makes after it has embedded the tokens."""
    shared = Shared()
    if case.layout.pp > 1:
        return shared
    with m.part("positions"):
        shared.passing.extend(empty(m, shape, "int64") for shape in position_ids(case))
        if case.family == "bloom":
            shared.passing.extend(_make_alibi(m, case))
        for facts in masked_kinds(case):
            shared.passing.append(make_mask(m, facts))
        if case.rotary_size:
            passing_on = case.family in DOUBLED_BY_BLOCKS
            holder = shared.passing if passing_on else shared.saved
            for _ in range(rotary_pairs(case)):
                made = m.module("rotary_emb", lambda: make_position_embeddings(m, case))
                holder.extend(dict.fromkeys(made))
                del made
    return shared


def find_shared(m: Machine, case: Case) -> Shared:
    """What the first block of its kind in a whole model is given, and what ends with it."""
    shared = Shared()
    if not case.boundary:
        return shared
    if case.recomputed:
        shared.passing.extend(m.external(shape, dtype) for shape, dtype in _handed(case))
    if case.rotary_size and case.family not in DOUBLED_BY_BLOCKS:
        if not case.opens and case.family not in OWN_ROTATIONS:
            return shared
        shape, dtype = rotary_shape(case), rotary_dtype(case)
        parts = 1 if case.family in COMPLEX_ROTATION else 2
        shared.saved.extend(
            m.book(m.external(shape, dtype), Term.ACTIVATIONS) for _ in range(parts)
        )
    return shared


def _handed(case: Case) -> list[Kind]:
    """What ends with a block that is the first with its window; with the first of all, more."""
    if case.opens:
        return [*_common(case), *_masks([case] if case.masked else [])]
    return _masks([case] if case.masked else [])


def passing(case: Case) -> list[Kind]:
    """Shapes and dtypes of what lives until the last norm has run."""
    return [*_common(case), *_slopes(case), *_masks(masked_kinds(case))]


def unused(case: Case) -> list[Kind]:
    """Of them, what no block is given: Qwen2-MoE makes a windowed mask in any case."""
    others = [kind for kind in masked_kinds(case) if kind.attention.window not in case.windows]
    return [*_slopes(case), *_masks(others)]


def _slopes(case: Case) -> list[Kind]:
    return [((case.attention.num_heads,), "fp32")] if case.family == "bloom" else []


def _masks(kinds: Iterable[Case]) -> list[Kind]:
    return [(kind.mask_shape, kind.mask_dtype) for kind in kinds]


def _common(case: Case) -> list[Kind]:
    """What all blocks are given, whatever their attention."""
    kinds: list[Kind] = [(shape, "int64") for shape in position_ids(case)]
    if case.family in DOUBLED_BY_BLOCKS and case.rotary_size:
        kinds += [(rotary_shape(case), rotary_dtype(case))] * 2
    if case.family == "bloom":
        heads = case.attention.num_heads
        kinds.append(((case.batch * heads, 1, case.length), case.dtype))
    return kinds


DOUBLED_BY_BLOCKS = {"glm", "glm4"}
"""Blocks save copies of cos and sin of their own, so the model's end with its forward pass."""
BOTH_MASKS = {"gemma2", "gemma3", "gemma3_text", "gpt_oss", "qwen2_moe"}
"""The model makes masks of full and of windowed attention, whatever its blocks use."""
OWN_ROTATIONS = {"gemma3", "gemma3_text"}
"""Windowed and full attention rotate differently (modeling_gemma3.py:549)."""
OWN_POSITIONS = {"bert", "bloom", "gpt2"}
"""No position ids, or such as the stem keeps for its own backward pass."""


def position_ids(case: Case) -> list[tuple[int, int]]:
    """Shapes of the position ids that the model hands to its blocks."""
    if case.family in OWN_POSITIONS or case.layout.sp > 1:
        return []
    return [(case.batch if case.family == "opt" else 1, case.length)]


def masked_kinds(case: Case) -> list[Case]:
    """The case once for each mask that the model makes: of full attention, then of a window."""
    attention = case.attention
    windows = set(case.windows) or {attention.window}
    if case.family in BOTH_MASKS:
        windows |= {None, max((window or 0 for window in windows), default=0)}
    kinds = [
        replace(case, block=replace(case.block, attention=replace(attention, window=window)))
        for window in sorted(windows, key=lambda window: window is not None)
    ]
    return [kind for kind in kinds if kind.masked]


def rotary_pairs(case: Case) -> int:
    """Pairs of cos and sin that the model makes."""
    return len(case.windows) if case.family in OWN_ROTATIONS else 1


def make_mask(m: Machine, case: Case) -> Tensor:
    """``eager_mask``: which scores count, then 0 or the smallest number."""
    visible = _visible(m, case)
    if case.mask_dtype == "bool":
        return visible
    mask = empty(m, case.mask_shape, case.dtype)
    del visible
    return mask


def _visible(m: Machine, case: Case) -> Tensor:
    """Which scores count: one comparison, with a sliding window two and two conjunctions."""
    shape = (1, 1, *case.mask_shape[2:])
    if case.attention.window is None:
        return empty(m, shape, "bool")
    near = empty(m, shape, "bool")
    near = empty(m, shape, "bool")
    before = empty(m, shape, "bool")
    both = empty(m, shape, "bool")
    del near, before
    return both


def _make_alibi(m: Machine, case: Case) -> list[Tensor]:
    """``BloomModel.forward``: slopes times places, repeated for every sequence, then cast."""
    heads = case.attention.num_heads
    slopes = empty(m, (heads,), "fp32")
    alibi = empty(m, (heads, 1, case.length), "fp32")
    alibi = empty(m, (case.batch * heads, 1, case.length), "fp32")
    return [slopes, to(alibi, case.dtype)]


def make_position_embeddings(m: Machine, case: Case) -> tuple[Tensor, Tensor]:
    """``LlamaRotaryEmbedding.forward``: computed in fp32, kept in the model's dtype."""
    if case.family in COMPLEX_ROTATION:
        return _make_complex(m, case)
    rows = rotary_shape(case)[0]
    frequencies = empty(m, (rows, case.length, case.rotary_size // 2), "fp32")
    angles = frequencies if case.attention.sinks else cat([frequencies, frequencies], -1)
    cos = scale(scale(angles))
    sin = scale(scale(angles))
    dtype = rotary_dtype(case)
    return to(cos, dtype), to(sin, dtype)


def _make_complex(m: Machine, case: Case) -> tuple[Tensor, Tensor]:
    """``DeepseekV2RotaryEmbedding.forward``: one number for cosine and sine; twice the same."""
    rows = rotary_shape(case)[0]
    angles = empty(m, (rows, case.length, case.rotary_size // 2), "fp32")
    ones = like(angles)
    turns = empty(m, rotary_shape(case), "fp32")
    del ones
    turns = scale(turns)
    return turns, turns
