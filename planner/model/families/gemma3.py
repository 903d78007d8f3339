"""Gemma 3: query and key norms, five sliding blocks to each full one, with images or without.

The text model trains as ``Gemma3ForCausalLM``; ``model_type: gemma3`` is the whole model, whose
tower (SigLIP) and projector stand in the stem, since they feed the first block. What the tower
computes is not described: an image's activations are not counted.

Source: transformers 5.23 models/gemma3/configuration_gemma3.py, modeling_gemma3.py;
models/siglip/configuration_siglip.py, modeling_siglip.py.
"""

from dataclasses import replace

from planner.model import parts
from planner.model.decoder import Frame, decoder, num_layers
from planner.model.description import Layer, Model, Placed
from planner.model.families.gemma import ONE_PLUS, gemma_frame, gemma_mlp
from planner.model.families.gemma2 import caps, sliding_blocks, wide_attention
from planner.model.grouped import KINDS, layer_kinds
from planner.model.keys import Keys
from planner.model.vision import vision_tower

VOCABULARY = 262_208


def build(keys: Keys) -> Model:
    """Read a ``Gemma3TextConfig``, or a ``Gemma3Config`` with its ``text_config``."""
    if keys.data.get("model_type") == "gemma3":
        return _with_images(keys)
    return decoder(keys, *_text(keys, "Gemma3ForCausalLM"))


def _text(keys: Keys, implementation: str) -> tuple[Frame, list[Layer]]:
    frame = gemma_frame(keys, implementation, positions=131_072)
    cap = caps(keys, "final_logit_softcapping", default=None)
    attention = replace(wide_attention(keys, frame.hidden, cap=None), qk_norm=ONE_PLUS)
    layers = num_layers(keys)
    pattern = keys.size("sliding_window_pattern", "_sliding_window_pattern", default=6)
    default = tuple(KINDS[(index + 1) % pattern != 0] for index in range(layers))
    blocks = sliding_blocks(keys, frame.hidden, attention, gemma_mlp(keys, "hidden_activation"))
    kinds = layer_kinds(keys, layers, default)
    return replace(frame, logit_softcap=cap), [blocks[kind] for kind in kinds]


def _with_images(keys: Keys) -> Model:
    text = keys.group("text_config")
    if text is None:
        keys.tell("text_config", "is missing; write the text model's keys there")
        keys.finish()
        raise AssertionError("a fault is told above")
    text.data = {"vocab_size": VOCABULARY, **text.data}
    frame, blocks = _text(text, "Gemma3ForConditionalGeneration")
    frame = replace(
        frame,
        prefix="model.language_model.",
        tied=keys.flag("tie_word_embeddings", default=frame.tied),
    )
    tower = vision_tower(keys, "vision_tower.") + _projector(keys, frame.hidden)
    model = decoder(keys, frame, blocks)
    embedding = tuple(
        replace(parameter, name=f"language_model.{parameter.name}")
        for parameter in model.stem.layer.parameters
    )
    stem = replace(model.stem.layer, parameters=tower + embedding)
    return replace(model, stem=Placed(prefix="model.", layer=stem))


def _projector(keys: Keys, hidden: int) -> parts.Parameters:
    images = keys.group("vision_config")
    width = 768 if images is None else images.size("hidden_size", default=768)
    return (
        parts.vision("multi_modal_projector.mm_input_projection_weight", width, hidden),
        parts.vision("multi_modal_projector.mm_soft_emb_norm.weight", width),
    )
