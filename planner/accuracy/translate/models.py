"""A model's dimensions, as entries give them, as the keys of a Hugging Face configuration."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from planner.accuracy.case import UnsupportedError
from planner.accuracy.entries import Section, whole

Keys = dict[str, Any]

_NEEDED = ("num_layers", "hidden", "num_heads")

_OTHER = ("hybrid_layer_pattern", "encoder_layers", "mamba_num_heads")
"""What only models that are no plain decoders have."""


def configuration(model: Section, *, dropout: float = 0.0) -> Keys:
    """Keys of a configuration that computes as the entry's model does.

    Raises:
        UnsupportedError: dimensions are missing, or no known family computes so.

    """
    missing = [key for key in _NEEDED if whole(model, key) is None]
    if missing or _vocabulary(model) is None:
        raise UnsupportedError(f"the model's {', '.join(missing) or 'vocab'} is not given")
    other = [key for key in _OTHER if model.get(key)]
    if other:
        raise UnsupportedError(f"models with {', '.join(other)} are not modelled")
    keys = _FAMILIES[_family(model)](model)
    return keys | {"_name_or_path": str(model.get("name", "model"))} | _dropouts(keys, dropout)


_DROPOUTS: Mapping[str, tuple[str, ...]] = {
    "gpt2": ("embd_pdrop", "attn_pdrop", "resid_pdrop"),
    "bloom": ("hidden_dropout", "attention_dropout"),
    "falcon": ("hidden_dropout", "attention_dropout"),
    "gpt_neox": ("hidden_dropout", "attention_dropout"),
}
"""Under which keys a family has its probabilities."""


def _dropouts(keys: Keys, probability: float) -> Keys:
    return dict.fromkeys(_DROPOUTS.get(keys["model_type"], ()), probability)


def _vocabulary(model: Section) -> int | None:
    return whole(model, "padded_vocab") or whole(model, "vocab")


def _family(model: Section) -> str:
    positions, norm = str(model.get("position_embedding", "rope")), model.get("normalization")
    if model.get("mla"):
        return "deepseek_v3"
    if model.get("moe"):
        return _mixed(model)
    if "layernorm" in str(norm).lower():
        return _with_layer_norm(model, positions)
    if model.get("activation") == "geglu":
        return "gemma"
    if model.get("qk_layernorm"):
        return "qwen3"
    return "qwen2" if model.get("qkv_bias") else "llama"


def _mixed(model: Section) -> str:
    moe = model["moe"]
    if isinstance(moe, dict) and (whole(moe, "shared_expert_ffn") or _dense_first(moe)):
        return "glm4_moe"
    return "qwen3_moe" if model.get("qk_layernorm") else "mixtral"


def _with_layer_norm(model: Section, positions: str) -> str:
    if positions == "alibi":
        return "bloom"
    if positions.startswith("learned"):
        return "opt" if model.get("activation") == "relu" else "gpt2"
    if whole(model, "num_kv_heads") == 1:
        return "falcon"
    return "gpt_neox"


def _common(model: Section) -> Keys:
    """Keys that most families share."""
    heads = whole(model, "num_heads") or 1
    keys: Keys = {
        "hidden_size": whole(model, "hidden"),
        "num_hidden_layers": whole(model, "num_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": whole(model, "num_kv_heads", heads),
        "vocab_size": _vocabulary(model),
        "tie_word_embeddings": model.get("tied_embeddings") is True,
    }
    if whole(model, "max_position_embeddings"):
        keys["max_position_embeddings"] = whole(model, "max_position_embeddings")
    return keys


def _width(model: Section) -> int:
    width = whole(model, "ffn_hidden")
    if width is None:
        raise UnsupportedError("the model's ffn_hidden is not given")
    return width


def _gated(kind: str) -> Callable[[Section], Keys]:
    def build(model: Section) -> Keys:
        size = {"head_dim": whole(model, "head_dim")} if whole(model, "head_dim") else {}
        act = {"hidden_act": "gelu_pytorch_tanh"} if kind == "gemma" else {}
        told = {"model_type": kind, "intermediate_size": _width(model)}
        return _common(model) | size | act | told

    return build


def _mixture(kind: str) -> Callable[[Section], Keys]:
    def build(model: Section) -> Keys:
        moe = model["moe"]
        names = {"mixtral": ("num_local_experts", "intermediate_size")}
        count, width = names.get(kind, ("num_experts", "moe_intermediate_size"))
        if whole(moe, "num_experts") is None or whole(moe, "moe_ffn_hidden") is None:
            raise UnsupportedError("the number or the width of the experts is not given")
        if whole(moe, "shared_expert_ffn") or whole(moe, "first_dense_layers"):
            raise UnsupportedError("shared experts beside grouped-query attention have no family")
        size = {"head_dim": whole(model, "head_dim")} if whole(model, "head_dim") else {}
        return (
            _common(model)
            | size
            | {
                "model_type": kind,
                "intermediate_size": whole(model, "ffn_hidden", 4 * (whole(model, "hidden") or 1)),
                count: whole(moe, "num_experts"),
                "num_experts_per_tok": whole(moe, "topk", 1),
                width: whole(moe, "moe_ffn_hidden"),
            }
        )

    return build


def _gpt2(model: Section) -> Keys:
    name = str(model.get("name", "")).lower()
    return {
        "model_type": "gpt2",
        "n_embd": whole(model, "hidden"),
        "n_layer": whole(model, "num_layers"),
        "n_head": whole(model, "num_heads"),
        "n_inner": _width(model),
        "n_positions": whole(model, "max_position_embeddings", 1024),
        "activation_function": "gelu_new" if "gpt2" in name or "gpt-2" in name else "gelu",
        "vocab_size": _vocabulary(model),
        "tie_word_embeddings": model.get("tied_embeddings") is not False,
    }


def _bloom(model: Section) -> Keys:
    return {
        "model_type": "bloom",
        "hidden_size": whole(model, "hidden"),
        "n_layer": whole(model, "num_layers"),
        "n_head": whole(model, "num_heads"),
        "vocab_size": _vocabulary(model),
        "tie_word_embeddings": model.get("tied_embeddings") is not False,
    }


def _opt(model: Section) -> Keys:
    width = whole(model, "word_embed_proj_dim")
    return _common(model) | {
        "model_type": "opt",
        "ffn_dim": _width(model),
        "do_layer_norm_before": model.get("note") != "post-LN",
        **({"word_embed_proj_dim": width} if width else {}),
    }


def _falcon(model: Section) -> Keys:
    return _common(model) | {"model_type": "falcon", "multi_query": True}


def _gpt_neox(model: Section) -> Keys:
    return _common(model) | {"model_type": "gpt_neox", "intermediate_size": _width(model)}


def _with_shared_experts(model: Section) -> Keys:
    """GLM-4.5 mixes dense blocks, experts and a shared one under grouped-query attention."""
    size = {"head_dim": whole(model, "head_dim")} if whole(model, "head_dim") else {}
    return (
        _common(model)
        | size
        | _experts(model)
        | {
            "model_type": "glm4_moe",
            "partial_rotary_factor": 1.0,
            "use_qk_norm": bool(model.get("qk_layernorm")),
        }
    )


def _latent(model: Section) -> Keys:
    """DeepSeek-V3 with the entry's ranks."""
    facts = model["mla"]
    if not isinstance(facts, dict):
        raise UnsupportedError("the ranks of latent attention are not given")
    return (
        _common(model)
        | _experts(model)
        | {
            "model_type": "deepseek_v3",
            "num_key_value_heads": whole(model, "num_heads"),
            "q_lora_rank": whole(facts, "q_lora_rank"),
            "kv_lora_rank": whole(facts, "kv_lora_rank", 512),
            "qk_rope_head_dim": whole(facts, "qk_pos_emb_head_dim", 64),
            "qk_nope_head_dim": whole(facts, "qk_head_dim", 128),
            "v_head_dim": whole(facts, "v_head_dim", 128),
        }
    )


_ONE_GROUP: Keys = {"n_group": 1, "topk_group": 1}


def _experts(model: Section) -> Keys:
    """Dense blocks first, then experts with a shared one; all dense where there are none."""
    moe = model.get("moe")
    layers = whole(model, "num_layers", 1) or 1
    dense = whole(model, "ffn_hidden", 4 * (whole(model, "hidden") or 1))
    if not isinstance(moe, dict):
        unused = {"n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": dense}
        return unused | {"intermediate_size": dense, "first_k_dense_replace": layers} | _ONE_GROUP
    width = whole(moe, "moe_ffn_hidden")
    count = whole(moe, "num_experts")
    if width is None or count is None:
        raise UnsupportedError("the number or the width of the experts is not given")
    shared = whole(moe, "shared_expert_ffn", 0) or 0
    if shared % width:
        raise UnsupportedError(f"a shared expert of {shared} beside experts of {width}")
    return {
        "intermediate_size": dense,
        "first_k_dense_replace": _dense_first(moe),
        "n_routed_experts": count,
        "num_experts_per_tok": whole(moe, "topk", 1),
        "moe_intermediate_size": width,
        "n_shared_experts": shared // width,
    } | _ONE_GROUP


def _dense_first(moe: Section) -> int:
    """``([0]*3+[1]*5)`` is three; every other pattern is refused."""
    told = moe.get("layer_freq")
    if isinstance(told, str):
        found = re.fullmatch(r"\(?\[0\]\*(\d+)\+\[1\]\*\d+\)?", told.replace(" ", ""))
        if found is None:
            raise UnsupportedError(f"experts in layers {told} are not modelled")
        return int(found[1])
    return whole(moe, "first_dense_layers", 0) or 0


_FAMILIES: Mapping[str, Callable[[Section], Keys]] = {
    "llama": _gated("llama"),
    "qwen2": _gated("qwen2"),
    "qwen3": _gated("qwen3"),
    "gemma": _gated("gemma"),
    "mixtral": _mixture("mixtral"),
    "qwen3_moe": _mixture("qwen3_moe"),
    "gpt2": _gpt2,
    "bloom": _bloom,
    "opt": _opt,
    "falcon": _falcon,
    "gpt_neox": _gpt_neox,
    "deepseek_v3": _latent,
    "glm4_moe": _with_shared_experts,
}
