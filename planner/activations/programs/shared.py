"""What a model makes once and hands to all its blocks: position ids, embeddings of them, masks.

With pipeline stages nothing but hidden states goes from layer to layer, so each block makes its
own. Sources, transformers 5.23: LlamaModel.forward and LlamaRotaryEmbedding.forward in
models/llama/modeling_llama.py; eager_mask in masking_utils.py.
"""

from dataclasses import dataclass, field

from planner.activations.eager import Machine, Tensor, cat, empty, scale, to
from planner.activations.programs.case import Case

Kind = tuple[tuple[int, ...], str]


@dataclass(slots=True, kw_only=True)
class Shared:
    """Handles on what is shared; a block that gets none makes or imagines its own."""

    saved: list[Tensor] = field(default_factory=list)
    """cos and sin: the blocks save them, so they live until the blocks' backward is over."""
    passing: list[Tensor] = field(default_factory=list)
    """Position ids and the mask: alive until the last norm has run; with recomputation until the
    blocks' backward is over, since every checkpoint keeps its arguments."""

    def position_embeddings(self, m: Machine, case: Case) -> tuple[Tensor, Tensor]:
        """cos and sin, (1, S, D)."""
        if self.saved:
            return self.saved[0], self.saved[1]
        if case.layout.pp > 1:
            return make_position_embeddings(m, case)
        shape = rotary_shape(case)
        return m.uncounted(shape, case.dtype), m.uncounted(shape, case.dtype)

    def attention_mask(self, m: Machine, case: Case) -> Tensor | None:
        """What eager attention adds to its scores."""
        if not case.masked:
            return None
        if case.layout.pp > 1:
            return make_mask(m, case)
        return m.uncounted(case.mask_shape, case.dtype)


def rotary_shape(case: Case) -> tuple[int, ...]:
    """Of cos and sin."""
    return (1, case.length, case.rotary_size)


def make_shared(m: Machine, case: Case) -> Shared:
    """What the model makes after it has embedded the tokens."""
    shared = Shared()
    if case.layout.pp > 1:
        return shared
    with m.part("positions"):
        shared.passing.append(empty(m, (1, case.length), "int64"))
        if case.masked:
            shared.passing.append(make_mask(m, case))
        if case.rotary_size:
            shared.saved.extend(make_position_embeddings(m, case))
    return shared


def find_shared(m: Machine, case: Case) -> Shared:
    """What the first block of a whole model is given, and what ends with it."""
    shared = Shared()
    if not case.boundary:
        return shared
    if case.recomputed:
        shared.passing.extend(m.external(shape, dtype) for shape, dtype in passing(case))
    if case.rotary_size:
        shared.saved.extend(m.external(rotary_shape(case), case.dtype) for _ in range(2))
    return shared


def passing(case: Case) -> list[Kind]:
    """Shapes and dtypes of what lives until the last norm has run."""
    kinds: list[Kind] = [((1, case.length), "int64")]
    if case.masked:
        kinds.append((case.mask_shape, case.dtype))
    return kinds


def leave_blocks(m: Machine, case: Case) -> None:
    """After the last norm: what was held for the forward pass only goes."""
    if case.stem_kept:
        m.strike((case.batch, case.length, case.hidden_size), case.dtype)
    if case.layout.pp == 1 and not case.recomputed:
        for shape, dtype in passing(case):
            m.strike(shape, dtype)


def make_mask(m: Machine, case: Case) -> Tensor:
    """``eager_mask``: which scores count, then 0 or the smallest number."""
    visible = _visible(m, case)
    mask = empty(m, case.mask_shape, case.dtype)
    del visible
    return mask


def _visible(m: Machine, case: Case) -> Tensor:
    """Which scores count: one comparison, with a sliding window two and two conjunctions."""
    shape = (1, *case.mask_shape[1:])
    if case.attention.window is None:
        return empty(m, shape, "bool")
    near = empty(m, shape, "bool")
    near = empty(m, shape, "bool")
    before = empty(m, shape, "bool")
    both = empty(m, shape, "bool")
    del near, before
    return both


def make_position_embeddings(m: Machine, case: Case) -> tuple[Tensor, Tensor]:
    """``LlamaRotaryEmbedding.forward``: computed in fp32, kept in the model's dtype."""
    frequencies = empty(m, (1, case.length, case.rotary_size // 2), "fp32")
    angles = cat([frequencies, frequencies], -1)
    cos = scale(scale(angles))
    sin = scale(scale(angles))
    return to(cos, case.dtype), to(sin, case.dtype)
