"""Whatever a user may name as a model: it loads, or the error says where, what, and the mend."""

import json
from pathlib import Path
from typing import Any

import pytest

from planner.errors import ModelError
from planner.model import catalogue
from planner.model.faults import ConfigError
from planner.model.load import load_model

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}
MIXTRAL = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4}
DEEPSEEK = {
    **LLAMA, "model_type": "deepseek_v3", "n_routed_experts": 16, "moe_intermediate_size": 8,
    "n_group": 4, "topk_group": 2,
}  # fmt: skip
QWEN3_MOE = {**LLAMA, "model_type": "qwen3_moe", "num_experts": 16, "moe_intermediate_size": 8}

BAD_KEYS: list[tuple[str, dict[str, Any], str, list[str]]] = [
    ("no family", {k: v for k, v in LLAMA.items() if k != "model_type"}, "model_type",
     ["is missing", "llama", "qwen3_moe"]),
    ("unknown family", {**LLAMA, "model_type": "mamba"}, "model_type",
     ["'mamba' is not a known family", "deepseek_v3", "planner model import DIR"]),
    ("family is a list", {**LLAMA, "model_type": ["llama"]}, "model_type", ["not a text"]),
    ("missing", {k: v for k, v in LLAMA.items() if k != "hidden_size"}, "hidden_size",
     ["is missing"]),
    ("misspelt", {**{k: v for k, v in LLAMA.items() if k != "hidden_size"}, "hiden_size": 64},
     "hidden_size", ["is missing", "there is hiden_size"]),
    ("text for a number", {**LLAMA, "hidden_size": "64"}, "hidden_size",
     ["'64' is not a whole number"]),
    ("float for a number", {**LLAMA, "vocab_size": 128.0}, "vocab_size", ["not a whole number"]),
    ("true for a number", {**LLAMA, "vocab_size": True}, "vocab_size",
     ["true is not a whole number"]),
    ("zero", {**LLAMA, "num_attention_heads": 0}, "num_attention_heads", ["out of range"]),
    ("negative", {**LLAMA, "intermediate_size": -1}, "intermediate_size", ["out of range"]),
    ("huge", {**LLAMA, "hidden_size": 10**400}, "hidden_size", ["an integer of", "out of range"]),
    ("too many layers", {**LLAMA, "num_hidden_layers": 10**6}, "num_hidden_layers",
     ["1000000 is out of range", "10000"]),
    ("a list", {**LLAMA, "hidden_size": [64]}, "hidden_size", ["[64] is not a whole number"]),
    ("word for a flag", {**LLAMA, "tie_word_embeddings": "yes"}, "tie_word_embeddings",
     ["neither true nor false"]),
    ("number for a flag", {**LLAMA, "attention_bias": 1}, "attention_bias", ["neither true nor"]),
    ("number for a word", {**LLAMA, "hidden_act": 3}, "hidden_act", ["not a text"]),
    ("dropout above one", {**LLAMA, "attention_dropout": 1.5}, "attention_dropout",
     ["out of range"]),
    ("dropout not a number", {**LLAMA, "attention_dropout": "0.1"}, "attention_dropout",
     ["is not a number"]),
    ("dropout nan", {**LLAMA, "attention_dropout": float("nan")}, "attention_dropout",
     ["out of range"]),
    ("heads do not divide", {**LLAMA, "num_attention_heads": 10, "num_key_value_heads": 5},
     "num_attention_heads", ["10 does not divide hidden_size=64", "e.g. 8"]),
    ("groups do not divide", {**LLAMA, "num_key_value_heads": 3}, "num_key_value_heads",
     ["3 does not divide num_attention_heads=8"]),
    ("more groups than heads", {**LLAMA, "num_key_value_heads": 16}, "num_key_value_heads",
     ["16 does not divide"]),
    ("top-k above experts", {**MIXTRAL, "num_experts_per_tok": 5}, "num_experts_per_tok",
     ["5 is above", "write at most 4"]),
    ("groups of experts", {**DEEPSEEK, "n_group": 5}, "n_group", ["5 does not divide"]),
    ("chosen groups", {**DEEPSEEK, "topk_group": 5}, "topk_group", ["5 is above n_group=4"]),
    ("chosen experts", {**DEEPSEEK, "topk_group": 1}, "num_experts_per_tok",
     ["8 is above the experts of the chosen groups=4"]),
    ("dense blocks", {**DEEPSEEK, "first_k_dense_replace": -3}, "first_k_dense_replace",
     ["-3 is out of range", "write 0 to"]),
    ("layer types", {**LLAMA, "model_type": "qwen3", "layer_types": ["full"]}, "layer_types",
     ["full_attention and sliding_attention"]),
    ("too few layer types",
     {**LLAMA, "model_type": "qwen3", "layer_types": ["full_attention"]}, "layer_types",
     ["lists 1 layers; the model has 2"]),
    ("dense layers out of range", {**QWEN3_MOE, "mlp_only_layers": [7]}, "mlp_only_layers",
     ["layer numbers from 0 to 1"]),
    ("another class", {**LLAMA, "architectures": ["LlamaForSequenceClassification"]},
     "architectures", ["LlamaForSequenceClassification", "planner model import DIR"]),
    ("text model missing", {"model_type": "gemma3"}, "text_config", ["is missing"]),
    ("text model no mapping", {"model_type": "gemma3", "text_config": 3}, "text_config",
     ["3 is not a mapping"]),
    ("rope no mapping", {**LLAMA, "rope_parameters": {"partial_rotary_factor": 7}},
     "rope_parameters.partial_rotary_factor", ["out of range"]),
    ("odd width", {"model_type": "qwen", "hidden_size": 64, "intermediate_size": 95,
                   "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9},
     "intermediate_size", ["95 is odd"]),
    ("bert decoder", {**LLAMA, "model_type": "bert", "is_decoder": True}, "is_decoder",
     ["true is not described", "planner model import DIR"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "key", "said"), [row[1:] for row in BAD_KEYS], ids=[row[0] for row in BAD_KEYS]
)
def test_a_bad_key_is_told_with_its_mend(config: dict[str, Any], key: str, said: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_model(config, folder=Path())
    keys = {fault.key for fault in caught.value.faults}
    assert keys == {key}
    for text in said:
        assert text in str(caught.value)


def test_every_fault_of_a_file_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    broken = {**LLAMA, "hidden_size": "64", "vocab_size": -1, "tie_word_embeddings": 3}
    path.write_text(json.dumps(broken, indent=2))
    with pytest.raises(ConfigError) as caught:
        load_model(str(path), folder=tmp_path)
    lines = path.read_text().splitlines()
    told = {fault.key: fault.line for fault in caught.value.faults}
    assert set(told) == {"hidden_size", "vocab_size", "tie_word_embeddings"}
    for key, line in told.items():
        assert f'"{key}"' in lines[line - 1]
    assert str(caught.value).splitlines()[0].startswith(f"{path}:")


BAD_FILES: list[tuple[str, bytes, list[str]]] = [
    ("empty", b"", ["not JSON"]),
    ("binary", bytes(range(256)), ["not UTF-8"]),
    ("truncated", b'{"model_type": "llama",', ["not JSON"]),
    ("a list", b"[1, 2]", ["holds a list"]),
    ("a number", b"3", ["holds a int"]),
    ("nan", b'{"model_type": "llama", "hidden_size": NaN}', ["NaN is not a number"]),
    ("infinity", b'{"model_type": "llama", "hidden_size": -Infinity}', ["-Infinity"]),
    ("deep", b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ["nested too deeply"]),
    ("huge number", b'{"model_type": "llama", "hidden_size": ' + b"9" * 5000 + b"}", ["digits"]),
    ("given twice", b'{"model_type": "llama", "a": 1, "a": 2}', ["a: given twice"]),
    ("not a config", b"{}", ["model_type: is missing"]),
    ("stored for another release", b'{"schema": "planner.inventory/9"}', ["import the model"]),
    ("half an inventory", b'{"schema": "planner.inventory/1", "name": "x"}', ["whole inventory"]),
]


@pytest.mark.parametrize(
    ("content", "said"), [row[1:] for row in BAD_FILES], ids=[row[0] for row in BAD_FILES]
)
def test_a_bad_file_is_told(tmp_path: Path, content: bytes, said: list[str]) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_model("model.json", folder=tmp_path)
    assert str(path) in str(caught.value)
    for text in said:
        assert text in str(caught.value)


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ModelError, match="at most"):
        load_model("./config.json", folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llama-2-7", "llama-2-7b"),
        ("meta-llama/Llama-2-7b", "llama-2-7b"),
        ("DeepSeek-V4", "deepseek-v3"),
        ("./nowhere/config.json", "does not exist"),
        ("x" * 5000, "possible path"),
        ("a\0b", "a"),
        ("", "not a model"),
        ("~nobody-here/x", "x"),
    ],
)
def test_an_unknown_name_is_told_with_what_is_near(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(name, folder=tmp_path)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_folder_without_a_configuration_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_model(".", folder=tmp_path)


def test_a_path_leads_to_a_file_or_its_folder_relative_to_the_users_file(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    by_folder = load_model("my-model", folder=tmp_path)
    assert by_folder == load_model("my-model/config.json", folder=tmp_path)
    assert by_folder == load_model(str(folder), folder=Path("elsewhere"))
    assert by_folder.name == "my-model"


def test_a_catalogue_name_wins_over_a_folder_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text(json.dumps({**LLAMA, "model_type": "llama"}))
    assert load_model("gpt2", folder=tmp_path).family == "gpt2"
    assert load_model("./gpt2", folder=tmp_path).family == "llama"


def test_inline_keys_make_the_same_model_as_a_file(tmp_path: Path) -> None:
    config = json.loads(catalogue.path_of("qwen2-72b").read_text())
    inline = load_model(config, folder=tmp_path)
    assert list(inline.parameters()) == list(load_model("qwen2-72b", folder=tmp_path).parameters())


def test_a_recursive_mapping_is_told_and_not_followed() -> None:
    config: dict[str, Any] = dict(LLAMA)
    config["hidden_size"] = config
    with pytest.raises(ConfigError, match="not a whole number"):
        load_model(config, folder=Path())


def test_no_heavy_import_is_needed() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from planner.model.load import load_model;"
        "load_model('deepseek-v3', folder=Path()); load_model('gpt-3', folder=Path());"
        "print(sorted({'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
