"""OLMo 2: norms after each branch, and over the whole query and key projections.

Source: transformers 5.23 models/olmo2/configuration_olmo2.py, modeling_olmo2.py.
"""

from dataclasses import replace

from planner.model.decoder import (
    decoder,
    gated_block,
    join_norms,
    num_layers,
    read_frame,
    read_mlp,
)
from planner.model.description import Model, Norm
from planner.model.grouped import grouped_attention
from planner.model.keys import Keys

RMS_FP32 = Norm(kind="rms_fp32")


def build(keys: Keys) -> Model:
    """Read an ``Olmo2Config``."""
    frame = read_frame(keys, "Olmo2ForCausalLM", positions=2048, norm=RMS_FP32)
    bias = keys.flag("attention_bias", default=False)
    attention = replace(
        grouped_attention(keys, frame.hidden, bias=bias, output_bias=bias),
        qk_norm=RMS_FP32,
        qk_norm_over="projection",
    )
    norms = join_norms(
        ("post_attention_layernorm", "post_feedforward_layernorm"), frame.hidden, RMS_FP32
    )
    block = gated_block(
        frame.hidden,
        attention,
        read_mlp(keys),
        norms=norms,
        norm=RMS_FP32,
        residual="post_output",
    )
    return decoder(keys, frame, [block] * num_layers(keys))
