"""The one description of a model that everything else reads.

A model is a stem (embeddings), blocks, and a tail (last norm, head). Equal blocks share one
`Layer` value (the same object), so whatever is computed per layer is computed once.

Two orders, and they differ: `Model.placed` is the order of the forward pass, which pipelines cut;
`Model.registered` and `Model.parameters` follow ``named_parameters()``, in which DeepSpeed flattens
a model that it gets whole (OPT registers its last norm before its blocks). A tied head has no
parameters of its own. ``inventory_only`` models (imported ones) know every parameter but nothing
of how they compute: their layers have no `Attention`, `Mlp` or `Norm`, so no activations follow.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

Component = Literal[
    "embedding",
    "attention.q",
    "attention.k",
    "attention.v",
    "attention.qkv",
    "attention.o",
    "attention.q_down",
    "attention.q_up",
    "attention.kv_down",
    "attention.kv_up",
    "attention.sinks",
    "mlp",
    "router",
    "routed_experts",
    "shared_experts",
    "norm",
    "head",
    "adapter",
    "vision",
    "other",
]
"""adapter: beside a frozen matrix (`model.adapters`).

vision: an image tower with its projector; other: what an imported model does not tell."""


Storage = Literal["model", "fp32", "fp32_autocast", "nf4", "nf4_double", "gptq"]
"""How a tensor lies in memory and is used.

model: in the training's precision; fp32: whatever that is; fp32_autocast: the same, cast where it
is used; the rest: four bits an element, with constants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One tensor, under the name that the framework's own model gives it."""

    name: str
    """Inside a `Layer`: relative to the layer's prefix."""
    shape: tuple[int, ...]
    component: Component
    tp_dim: int | None = None
    """The tensor dim that tensor parallelism cuts; None: every rank holds the whole."""
    routed: bool = False
    """Belongs to the routed experts; dim 0 of ``shape`` counts them, biases included."""
    trained: bool = True
    """False: frozen, so that it has neither a gradient nor optimizer states."""
    stored: Storage = "model"

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """A normalisation over the hidden (or head) dim."""

    kind: Literal["layer", "rms", "rms_fp32", "rms_one_plus"]
    """rms: normalises in fp32, rounds, then multiplies by the weight (Llama); rms_fp32: multiplies
    before it rounds (OLMo 2, gpt-oss); rms_one_plus: the same with 1 + weight (Gemma)."""
    affine: bool = True
    bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """The low-rank projections of MLA (DeepSeek-V2, arXiv:2405.04434, section 2.1)."""

    q_rank: int | None
    """None: queries are projected in one step."""
    kv_rank: int
    rope_head_size: int
    nope_head_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """One attention module; MHA, GQA and MQA differ only in ``num_kv_heads``."""

    num_heads: int
    num_kv_heads: int
    head_size: int
    """Of queries and keys; for MLA the sum of its two parts."""
    value_head_size: int
    fused_qkv: bool = False
    bias: bool = False
    """Of the query, key and value projections."""
    output_bias: bool = False
    qk_norm: Norm | None = None
    qk_norm_over: Literal["head", "projection"] = "head"
    rotary_size: int = 0
    """Elements of a head that are rotated; 0: no rotary positions."""
    window: int | None = None
    """Tokens that a sliding window shows; None: all before."""
    causal: bool = True
    alibi: bool = False
    sinks: bool = False
    softcap: bool = False
    dropout: float = 0.0
    latent: LatentAttention | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """A dense feed-forward module."""

    ffn_size: int
    gated: bool
    activation: str
    """As the configuration spells it: ``silu``, ``gelu_new``, ``relu``, ..."""
    bias: bool = False
    fused_gate_up: bool = False
    clamped: bool = False
    """gpt-oss: gate and up are clamped, then ``(up + 1) * gate * sigmoid(a * gate)``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moe:
    """Routed experts with an optional shared one."""

    num_experts: int
    experts_per_token: int
    expert: Mlp
    shared: Mlp | None = None
    """All shared experts as the one MLP that implementations make of them."""
    shared_gate: bool = False
    score: Literal["softmax", "sigmoid"] = "softmax"
    router_bias: bool = False
    router_fp32: bool = False
    """The router casts its input and its weight to fp32 (DeepSeek, GLM-4.5)."""
    score_correction: bool = False
    """A buffer of one fp32 value an expert is added to the scores before the choice."""
    normalize: bool = False
    """The chosen experts' weights are divided by their sum."""
    num_groups: int = 1
    groups_per_token: int = 1
    """Only the experts of this many of ``num_groups`` groups are candidates."""
    scaling_factor: float = 1.0


Residual = Literal[
    "pre", "post", "sandwich", "post_output", "parallel_one_norm", "parallel_two_norms"
]
"""How norms and branches join.

pre: x + f(norm(x)); post: norm(x + f(x)) (BERT); sandwich: x + norm(f(norm(x))) (Gemma 2/3,
GLM-4-0414); post_output: x + norm(f(x)) (OLMo 2); parallel: x + attention(n(x)) + mlp(m(x)) with
one shared norm (Falcon, Phi-2) or one each (GPT-NeoX).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What one entry of a pipeline holds: the stem, one block, the last norm, or the head."""

    kind: Literal["stem", "block", "norm", "head"]
    parameters: tuple[Parameter, ...]
    """In the order in which the framework's own model registers them."""
    norm: Norm | None = None
    """Of the block's branches; of the last norm: itself."""
    attention: Attention | None = None
    mlp: Mlp | Moe | None = None
    residual: Residual = "pre"
    hidden_dropout: float = 0.0
    """Of the branches before they join the residual; of the stem: on its output."""
    adapter_dropout: bool = False
    """What goes into low-rank adapters is dropped out."""
    positions: Literal["none", "learned"] = "none"
    token_types: bool = False
    """The stem adds an embedding of BERT's two segments."""
    embedding_norm: bool = False
    embedding_scale: bool = False
    """The stem multiplies its output by the square root of the hidden size (Gemma)."""
    embedding_size: int | None = None
    """Of a stem or a head that projects from or to a narrower embedding (OPT-350m): its width."""
    head_transform: bool = False
    """BERT's dense + activation + norm before the decoder."""
    logit_softcap: bool = False
    """The head bends its logits with tanh (Gemma 2)."""

    @property
    def numel(self) -> int:
        """Parameters of the layer, all experts included."""
        return sum(parameter.numel for parameter in self.parameters)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A layer at its place: the prefix turns its local names into full ones."""

    prefix: str
    layer: Layer
    registered_early: bool = False
    """Of a layer of the tail: ``named_parameters()`` lists it between the stem and the blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A whole model."""

    name: str
    family: str
    """The ``model_type`` of its configuration file."""
    implementation: str
    """The class that trains it, e.g. ``LlamaForCausalLM``."""
    hidden_size: int
    vocab_size: int
    max_positions: int
    tied: bool
    """The head multiplies by the embedding's weight and does not list it again."""
    stem: Placed
    blocks: tuple[Placed, ...]
    tail: tuple[Placed, ...]
    """What follows the blocks, in order; mostly the last norm, then the head."""
    inventory_only: bool = False
    """Only the parameters are known, not what the layers compute."""
    experts_per_token: int | None = None
    """Of an imported model, whose layers have no `Moe`; None: not known, or no experts."""

    def __hash__(self) -> int:
        """Cheap, as a model is a key of caches; equality still compares everything."""
        return hash((self.name, self.family, self.hidden_size, self.vocab_size, len(self.blocks)))

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def placed(self) -> Iterator[Placed]:
        """All layers in the order of the forward pass."""
        yield self.stem
        yield from self.blocks
        yield from self.tail

    def registered(self) -> Iterator[Placed]:
        """All layers in the order of ``named_parameters()``."""
        yield self.stem
        yield from (placed for placed in self.tail if placed.registered_early)
        yield from self.blocks
        yield from (placed for placed in self.tail if not placed.registered_early)

    def parameters(self) -> Iterator[Parameter]:
        """All parameters with full names, each once, in the order of ``named_parameters()``."""
        for placed in self.registered():
            for parameter in placed.layer.parameters:
                yield replace(parameter, name=placed.prefix + parameter.name)

    @property
    def num_parameters(self) -> int:
        """Trainable parameters, a tied head counted once."""
        return sum(placed.layer.numel for placed in self.placed())
