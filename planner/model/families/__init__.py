"""One small file a family: it turns a configuration into the description, nothing else.

Each has ``build(keys) -> Model``. A family is found by the ``model_type`` of the configuration and
imported when it is asked for.
"""

from importlib import import_module

from planner.model.description import Model
from planner.model.keys import Keys

FAMILIES: dict[str, str] = {
    "bert": "bert",
    "bloom": "bloom",
    "deepseek_v2": "deepseek_v2",
    "deepseek_v3": "deepseek_v3",
    "falcon": "falcon",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
    "glm": "glm",
    "glm4": "glm4",
    "glm4_moe": "glm4_moe",
    "gpt2": "gpt2",
    "gpt_neox": "gpt_neox",
    "gpt_oss": "gpt_oss",
    "kimi_k2": "deepseek_v3",
    "llama": "llama",
    "mistral": "mistral",
    "mixtral": "mixtral",
    "olmo2": "olmo2",
    "opt": "opt",
    "phi": "phi",
    "phi3": "phi3",
    "qwen": "qwen",
    "qwen2": "qwen2",
    "qwen2_moe": "qwen2_moe",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3_moe",
    "starcoder2": "starcoder2",
}
"""``model_type`` to the file here that describes it (Kimi-K2 has DeepSeek-V3's architecture)."""


def build(keys: Keys, model_type: str) -> Model:
    """Describe a configuration of a known family."""
    module = import_module(f"planner.model.families.{FAMILIES[model_type]}")
    model: Model = module.build(keys)
    return model
