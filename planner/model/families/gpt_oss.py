"""gpt-oss: attention sinks, every other block windowed, experts with biases and a clamped gate.

Weights of the experts are [E, in, out], unlike those of every other family.

Source: transformers 5.23 models/gpt_oss/configuration_gpt_oss.py, modeling_gpt_oss.py:68-135.
"""

from dataclasses import replace

from planner.model import parts
from planner.model.decoder import block, decoder, num_layers, read_frame, read_mlp, two_norms
from planner.model.description import Attention, Layer, Model, Moe, Norm, Parameter
from planner.model.grouped import KINDS, grouped_attention, layer_kinds, windowed
from planner.model.keys import Keys
from planner.model.mixture import top_k

RMS_FP32 = Norm(kind="rms_fp32")


def build(keys: Keys) -> Model:
    """Read a ``GptOssConfig``."""
    frame = read_frame(keys, "GptOssForCausalLM", positions=131_072, norm=RMS_FP32)
    bias = keys.flag("attention_bias", default=True)
    attention = replace(
        grouped_attention(
            keys, frame.hidden, kv_heads=8, head_size=64, bias=bias, output_bias=bias
        ),
        sinks=True,
    )
    window = keys.optional_size("sliding_window", default=128)
    moe, layers = _experts(keys), num_layers(keys)
    kinds = layer_kinds(keys, layers, tuple(KINDS[index % 2 == 0] for index in range(layers)))
    blocks = {
        KINDS[0]: _block(frame.hidden, attention, moe),
        KINDS[1]: _block(frame.hidden, windowed(attention, window), moe),
    }
    return decoder(keys, frame, [blocks[kind] for kind in kinds])


def _experts(keys: Keys) -> Moe:
    num_experts = keys.size("num_local_experts", "num_experts")
    return Moe(
        num_experts=num_experts,
        experts_per_token=top_k(keys, num_experts, default=4),
        expert=replace(read_mlp(keys, bias=True), clamped=True),
        router_bias=True,
        normalize=True,
    )


def _block(hidden: int, attention: Attention, moe: Moe) -> Layer:
    sinks = Parameter(
        name="self_attn.sinks",
        shape=(attention.num_heads,),
        component="attention.sinks",
        tp_dim=0,
    )
    parameters = parts.join(
        (
            (sinks,),
            parts.projections("self_attn.", hidden, attention),
            parts.router("mlp.router", hidden, moe),
            _expert_weights(hidden, moe),
            two_norms(hidden, RMS_FP32),
        )
    )
    return block(parameters, attention=attention, mlp=moe, norm=RMS_FP32)


def _expert_weights(hidden: int, moe: Moe) -> parts.Parameters:
    count, width = moe.num_experts, moe.expert.ffn_size
    shapes: dict[str, tuple[tuple[int, ...], int | None]] = {
        "gate_up_proj": ((count, hidden, 2 * width), 2),
        "gate_up_proj_bias": ((count, 2 * width), 1),
        "down_proj": ((count, width, hidden), 1),
        "down_proj_bias": ((count, hidden), None),
    }
    return tuple(
        Parameter(
            name=f"mlp.experts.{name}",
            shape=shape,
            component="routed_experts",
            tp_dim=tp_dim,
            routed=True,
        )
        for name, (shape, tp_dim) in shapes.items()
    )
