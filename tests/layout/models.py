"""Small models by hand, for what needs exact shapes."""

from planner.model.description import Attention, Layer, Mlp, Model, Moe, Norm, Parameter, Placed

RMS = Norm(kind="rms")


def attention_parameters(attention, hidden):
    q, kv = attention.num_heads * attention.head_size, attention.num_kv_heads * attention.head_size
    return (
        Parameter(name="attn.q.weight", shape=(q, hidden), component="attention.q", tp_dim=0),
        Parameter(name="attn.k.weight", shape=(kv, hidden), component="attention.k", tp_dim=0),
        Parameter(name="attn.v.weight", shape=(kv, hidden), component="attention.v", tp_dim=0),
        Parameter(name="attn.o.weight", shape=(hidden, q), component="attention.o", tp_dim=1),
    )


def dense_parameters(ffn, hidden):
    return (
        Parameter(name="mlp.up_proj.weight", shape=(ffn, hidden), component="mlp", tp_dim=0),
        Parameter(name="mlp.down_proj.weight", shape=(hidden, ffn), component="mlp", tp_dim=1),
    )


def mixture_parameters(experts, ffn, hidden):
    routed = {"component": "routed_experts", "routed": True}
    return (
        Parameter(
            name="mlp.experts.gate_up_proj", shape=(experts, 2 * ffn, hidden), tp_dim=1, **routed
        ),
        Parameter(name="mlp.experts.down_proj", shape=(experts, hidden, ffn), tp_dim=2, **routed),
        Parameter(name="mlp.gate.weight", shape=(experts, hidden), component="router"),
        Parameter(
            name="mlp.shared.weight", shape=(ffn, hidden), component="shared_experts", tp_dim=0
        ),
    )


def small_model(
    *,
    hidden=48,
    heads=12,
    kv_heads=4,
    head_size=4,
    ffn=96,
    vocab=1000,
    blocks=6,
    experts=0,
    tied=False,
    family="llama",
):
    attention = Attention(
        num_heads=heads, num_kv_heads=kv_heads, head_size=head_size, value_head_size=head_size
    )
    mlp = Mlp(ffn_size=ffn, gated=bool(experts), activation="silu")
    feed_forward = (
        mixture_parameters(experts, ffn, hidden) if experts else dense_parameters(ffn, hidden)
    )
    block = Layer(
        kind="block",
        parameters=(
            *attention_parameters(attention, hidden),
            *feed_forward,
            Parameter(name="norm.weight", shape=(hidden,), component="norm"),
        ),
        norm=RMS,
        attention=attention,
        mlp=Moe(num_experts=experts, experts_per_token=1, expert=mlp) if experts else mlp,
    )
    table = Parameter(name="weight", shape=(vocab, hidden), component="embedding", tp_dim=0)
    last = Parameter(name="weight", shape=(hidden,), component="norm")
    top = Parameter(name="weight", shape=(vocab, hidden), component="head", tp_dim=0)
    return Model(
        name="small",
        family=family,
        implementation="LlamaForCausalLM",
        hidden_size=hidden,
        vocab_size=vocab,
        max_positions=64,
        tied=tied,
        stem=Placed(prefix="embed.", layer=Layer(kind="stem", parameters=(table,))),
        blocks=tuple(Placed(prefix=f"layers.{i}.", layer=block) for i in range(blocks)),
        tail=(
            Placed(prefix="norm.", layer=Layer(kind="norm", parameters=(last,), norm=RMS)),
            Placed(prefix="lm_head.", layer=Layer(kind="head", parameters=() if tied else (top,))),
        ),
    )
