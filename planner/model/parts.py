"""Parameters of the parts that families share, in the order in which modules register them.

A weight of ``torch.nn.Linear`` is [out, in]: a *column* cut takes dim 0 of weight and bias, a *row*
cut dim 1 of the weight and leaves the bias whole. Cuts are those of transformers' tensor-parallel
plans (``base_model_tp_plan`` of the configuration classes) and of Megatron-LM: embedding and head
by vocabulary, queries, keys, values, gate and up by column, output and down by row.
"""

from collections.abc import Iterable
from typing import Literal

from planner.model.description import Attention, Component, Mlp, Moe, Norm, Parameter

Cut = Literal["column", "row"] | None
Parameters = tuple[Parameter, ...]


def linear(
    name: str,
    inputs: int,
    outputs: int,
    component: Component,
    *,
    bias: bool = False,
    cut: Cut = None,
) -> Parameters:
    """``name.weight`` [outputs, inputs] and, with ``bias``, ``name.bias`` [outputs]."""
    dims: dict[Cut, int | None] = {"column": 0, "row": 1, None: None}
    weight = Parameter(
        name=f"{name}.weight", shape=(outputs, inputs), component=component, tp_dim=dims[cut]
    )
    return (weight, *_bias(name, outputs, component, cut=cut)) if bias else (weight,)


def conv1d(name: str, inputs: int, outputs: int, component: Component, *, cut: Cut) -> Parameters:
    """GPT-2's ``Conv1D``: weight [inputs, outputs] and bias (transformers pytorch_utils.py)."""
    weight = Parameter(
        name=f"{name}.weight",
        shape=(inputs, outputs),
        component=component,
        tp_dim=1 if cut == "column" else 0,
    )
    return weight, *_bias(name, outputs, component, cut=cut)


def norm(name: str, size: int, kind: Norm) -> Parameters:
    """``name.weight`` and ``name.bias``, as far as the norm has them."""
    if not kind.affine:
        return ()
    weight = Parameter(name=f"{name}.weight", shape=(size,), component="norm")
    bias = Parameter(name=f"{name}.bias", shape=(size,), component="norm")
    return (weight, bias) if kind.bias else (weight,)


def embedding(name: str, rows: int, size: int, *, cut: bool = True) -> Parameters:
    """``name.weight`` [rows, size], cut by rows unless it holds positions."""
    return (
        Parameter(
            name=f"{name}.weight",
            shape=(rows, size),
            component="embedding",
            tp_dim=0 if cut else None,
        ),
    )


def projections(
    prefix: str,
    hidden: int,
    attention: Attention,
    *,
    order: str = "qkvo",
    output: str = "o_proj",
) -> Parameters:
    """Separate query, key, value and output projections, MHA to MQA."""
    queries = attention.num_heads * attention.head_size
    keys = attention.num_kv_heads * attention.head_size
    values = attention.num_kv_heads * attention.value_head_size
    joined = attention.num_heads * attention.value_head_size
    made = {
        "q": linear(f"{prefix}q_proj", hidden, queries, "attention.q",
                    bias=attention.bias, cut="column"),
        "k": linear(f"{prefix}k_proj", hidden, keys, "attention.k",
                    bias=attention.bias, cut="column"),
        "v": linear(f"{prefix}v_proj", hidden, values, "attention.v",
                    bias=attention.bias, cut="column"),
        "o": linear(f"{prefix}{output}", joined, hidden, "attention.o",
                    bias=attention.output_bias, cut="row"),
    }  # fmt: skip
    return join(made[letter] for letter in order)


def qk_norms(
    prefix: str, attention: Attention, names: tuple[str, str] = ("q_norm", "k_norm")
) -> Parameters:
    """Norms of queries and keys, over one head or over the whole projection."""
    if attention.qk_norm is None:
        return ()
    whole = attention.qk_norm_over == "projection"
    queries, keys = (
        heads * attention.head_size if whole else attention.head_size
        for heads in (attention.num_heads, attention.num_kv_heads)
    )
    kind = attention.qk_norm
    return norm(prefix + names[0], queries, kind) + norm(prefix + names[1], keys, kind)


def gated_mlp(prefix: str, hidden: int, mlp: Mlp, component: Component = "mlp") -> Parameters:
    """``gate_proj``, ``up_proj`` and ``down_proj``, or the fused ``gate_up_proj``."""
    gate_up = ("gate_up_proj",) if mlp.fused_gate_up else ("gate_proj", "up_proj")
    width = mlp.ffn_size * 2 // len(gate_up)
    return join(
        (
            *(linear(prefix + name, hidden, width, component, bias=mlp.bias, cut="column")
              for name in gate_up),
            linear(f"{prefix}down_proj", mlp.ffn_size, hidden, component, bias=mlp.bias, cut="row"),
        )
    )  # fmt: skip


def plain_mlp(prefix: str, hidden: int, mlp: Mlp, *, names: tuple[str, str]) -> Parameters:
    """Up and down under a family's own names."""
    up, down = names
    return linear(prefix + up, hidden, mlp.ffn_size, "mlp", bias=mlp.bias, cut="column") + linear(
        prefix + down, mlp.ffn_size, hidden, "mlp", bias=mlp.bias, cut="row"
    )


def experts(prefix: str, hidden: int, moe: Moe) -> Parameters:
    """All experts of a block as transformers 5 fuses them: [E, 2F, H] and [E, H, F]."""
    count, width = moe.num_experts, moe.expert.ffn_size
    return (
        Parameter(
            name=f"{prefix}gate_up_proj",
            shape=(count, 2 * width, hidden),
            component="routed_experts",
            tp_dim=1,
            routed=True,
        ),
        Parameter(
            name=f"{prefix}down_proj",
            shape=(count, hidden, width),
            component="routed_experts",
            tp_dim=2,
            routed=True,
        ),
    )


def router(name: str, hidden: int, moe: Moe) -> Parameters:
    """The gate that scores the experts; whole on every rank."""
    return linear(name, hidden, moe.num_experts, "router", bias=moe.router_bias)


def mixture(hidden: int, moe: Moe) -> Parameters:
    """DeepSeek's and GLM's ``mlp``: experts, the gate, and the shared experts as one MLP."""
    shared = (
        ()
        if moe.shared is None
        else gated_mlp("mlp.shared_experts.", hidden, moe.shared, "shared_experts")
    )
    return experts("mlp.experts.", hidden, moe) + router("mlp.gate", hidden, moe) + shared


def head(name: str, hidden: int, vocab: int, *, bias: bool = False) -> Parameters:
    """The output projection, cut by vocabulary."""
    return linear(name, hidden, vocab, "head", bias=bias, cut="column")


def vision(name: str, *shape: int) -> Parameter:
    """A weight of an image tower, whole on every rank."""
    return Parameter(name=name, shape=shape, component="vision")


def join(groups: Iterable[Parameters]) -> Parameters:
    """One after another."""
    return tuple(parameter for group in groups for parameter in group)


def _bias(name: str, size: int, component: Component, *, cut: Cut) -> Parameters:
    tp_dim = 0 if cut == "column" else None
    return (Parameter(name=f"{name}.bias", shape=(size,), component=component, tp_dim=tp_dim),)
