"""Facts of the description that no parameter shows, read off transformers' own modules."""

import json
from pathlib import Path
from typing import Any

import pytest

from planner.model import catalogue
from planner.model.description import Model
from planner.model.load import load_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.real

CLASSES = {"LLaMAForCausalLM": "LlamaForCausalLM"}
ONE_OF_EACH = sorted(
    {entry.family: entry.name for entry in catalogue.entries() if entry.family != "qwen"}.values()
)


def built(name: str) -> tuple[Any, Model]:
    config = json.loads(catalogue.path_of(name).read_text())
    config.pop("quantization_config", None)
    trained = CLASSES.get(config["architectures"][0], config["architectures"][0])
    settings = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    with torch.device("meta"):
        model = getattr(transformers, trained)(settings)
    return model, load_model(name, folder=Path())


def blocks_of(model: Any) -> Any:
    """The longest ModuleList: the blocks."""
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]
    return max(lists, key=len)


@pytest.fixture(params=ONE_OF_EACH)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Model]:
    return built(request.param)


def test_windows(pair: tuple[Any, Model]) -> None:
    theirs, ours = pair
    config = theirs.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    for index, placed in enumerate(ours.blocks):
        window = getattr(config, "sliding_window", None) or None
        if kinds is not None and kinds[index] == "full_attention":
            window = None
        assert placed.layer.attention.window == window, placed.prefix


def test_rotary_size(pair: tuple[Any, Model]) -> None:
    """``inv_freq`` has one frequency for each pair of rotated elements."""
    theirs, ours = pair
    sizes = {
        2 * buffer.numel() for name, buffer in theirs.named_buffers() if "inv_freq" in name
    } or {0}
    assert sizes == {placed.layer.attention.rotary_size for placed in ours.blocks}


def test_dropouts(pair: tuple[Any, Model]) -> None:
    """Every probability that stands in the configuration under a key of the training path."""
    theirs, ours = pair
    config = theirs.config.get_text_config().to_dict()
    attention = {
        float(config[key])
        for key in ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
        if config.get(key) is not None
    }
    hidden = {
        float(config[key])
        for key in ("resid_pdrop", "hidden_dropout", "hidden_dropout_prob", "residual_dropout",
                    "dropout")
        if config.get(key) is not None
    }  # fmt: skip
    layer = ours.blocks[0].layer
    assert attention == {layer.attention.dropout}
    assert (hidden or {0.0}) == {layer.hidden_dropout}


def test_heads(pair: tuple[Any, Model]) -> None:
    theirs, ours = pair
    attention = ours.blocks[0].layer.attention
    config = theirs.config.get_text_config()
    assert attention.num_heads == config.num_attention_heads
    groups = [
        m.num_key_value_groups for m in theirs.modules() if hasattr(m, "num_key_value_groups")
    ]
    if groups and attention.latent is None:
        assert attention.num_heads // attention.num_kv_heads == groups[-1]


def test_which_norm_it_is(pair: tuple[Any, Model]) -> None:
    """The class of the norm before the head, and the order in which its source rounds."""
    import inspect

    theirs, ours = pair
    kinds = {placed.layer.norm.kind for placed in ours.blocks}
    module = next(m for m in blocks_of(theirs)[0].modules() if type(m).__name__.endswith("Norm"))
    if isinstance(module, torch.nn.LayerNorm):
        assert kinds == {"layer"}
        return
    source = inspect.getsource(type(module).forward)
    one_plus = "1.0 + self.weight" in source
    early = "self.weight * hidden_states.to(" in source
    assert kinds == {"rms_one_plus" if one_plus else "rms" if early else "rms_fp32"}


def test_router(pair: tuple[Any, Model]) -> None:
    import inspect

    theirs, ours = pair
    routers = [m for m in theirs.modules() if "Router" in type(m).__name__]
    described = {placed.layer.mlp for placed in ours.blocks if hasattr(placed.layer.mlp, "score")}
    assert bool(routers) == bool(described)
    for moe in described:
        source = inspect.getsource(type(routers[0]).forward)
        assert (moe.score == "sigmoid") == ("sigmoid()" in source)
        assert moe.router_fp32 == ("self.weight.type(torch.float32)" in source)
        assert moe.score_correction == hasattr(routers[0], "e_score_correction_bias")
        assert moe.experts_per_token == routers[0].top_k
        assert moe.num_experts == routers[0].num_experts


def test_equal_blocks_are_the_same_object(pair: tuple[Any, Model]) -> None:
    _, ours = pair
    layers = [placed.layer for placed in ours.blocks]
    assert len({id(layer) for layer in layers}) == len(set(layers))
