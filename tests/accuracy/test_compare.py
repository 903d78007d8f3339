"""Entries beside plans: what is supported, what is named as not supported, what is scored."""

import copy

import pytest
import yaml

from planner.accuracy.compare import compare, decide
from planner.accuracy.entries import read_entries
from planner.accuracy.scores import count_fits, score
from planner.errors import SpecError
from planner.report.accuracy import document

ZERO_1 = {
    "id": "one",
    "framework": "DeepSpeed",
    "completeness": "A",
    "source": {"repo": "tohtana/ds_verify_loss"},
    "model": {
        "name": "Llama-3-8B", "num_layers": 32, "hidden": 4096, "ffn_hidden": 14336,
        "num_heads": 32, "num_kv_heads": 8, "vocab": 128256, "tied_embeddings": False,
        "normalization": "RMSNorm", "activation": "swiglu",
    },
    "parallel": {"world_size": 8, "tp": 1, "pp": 1, "zero_stage": 1, "overlap_comm": True},
    "training": {
        "micro_batch": 1, "grad_accum": 4, "seq_len": 512, "param_dtype": "bf16",
        "optimizer": "torch.optim.AdamW", "recompute": "none",
    },
    "hardware": {"gpu": "H100-80GB", "count": 8},
    "measured": {
        "quantity": "max_allocated", "value_gib": 46.6266, "scope": "rank 0",
        "static_allocated_gib": 26.3631,
    },
}  # fmt: skip
"""A run whose log prints bytes: 8 GPUs, ZeRO-1, Llama-3-8B (results_20250617_035117)."""


def changed(**sections):
    entry = copy.deepcopy(ZERO_1)
    for key, values in sections.items():
        entry[key] = {**entry[key], **values} if isinstance(values, dict) else values
    return entry


@pytest.fixture
def entries(tmp_path):
    def write(*rows):
        path = tmp_path / "entries.yaml"
        path.write_text(yaml.safe_dump(list(rows)))
        return read_entries(path)

    return write


def test_what_is_resident_is_what_the_log_says(entries):
    peak, resident = compare(entries(ZERO_1))
    assert resident.measured.quantity == "static_allocated"
    assert abs(resident.error) < 0.001
    assert abs(peak.error) < 0.06


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"framework": "Unheard-of"}, "framework Unheard-of is not modelled"),
        ({"training": {"method": "prefix tuning"}}, "frozen"),
        ({"training": {"seq_len": None}}, "sequence length"),
        ({"model": {"hidden": None}}, "hidden"),
        ({"parallel": {"zero_stage": "unknown"}}, "zero_stage"),
        ({"parallel": {"tp": 3}}, "do not divide"),
        ({"model": {"moe": "many"}}, ""),
        ({"model": {"num_heads": 7}}, "7"),
        ({"measured": {"quantity": "felt_size"}}, "felt_size"),
        ({"training": {"micro_batch": -1}}, ""),
    ],
)
def test_strange_entries_are_told_and_do_not_stop_the_others(entries, change, reason):
    rows = compare(entries(changed(**change), ZERO_1))
    assert rows[0].predicted is None
    assert rows[0].reason
    assert reason in rows[0].reason
    assert rows[-1].predicted is not None


def test_every_entry_is_in_the_document_once(entries):
    rows = compare(entries(ZERO_1, changed(framework="Unheard-of"), changed(id="two")))
    told = document(rows, [])
    assert [row["id"] for row in told["entries"]] == ["one", "one", "two"]
    assert [row["supported"] for row in told["entries"]] == [True, False, True]
    assert {row["quantity"] for row in told["further"]} == {"static_allocated"}


def test_scores_are_those_of_arithmetic(entries):
    rows = compare(entries(ZERO_1, changed(measured={"value_gib": 1.0})))
    peaks = [row for row in rows if row.measured.quantity == "max_allocated"]
    low, high = sorted(row.error for row in peaks)
    told = score("all", peaks)
    assert told.signed_median == pytest.approx((low + high) / 2)
    assert told.worst_error == high
    assert (told.within_10, told.inside) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("tokens", "device", "fits", "verdict"),
    [
        (512, "H100-80GB", True, "right"),
        (512, "V100-32GB", True, "wrongly_refused"),
        (512, "V100-32GB", False, "right"),
        (512, "H100-80GB", False, "wrongly_fits"),
    ],
)
def test_verdicts_are_counted(entries, tokens, device, fits, verdict):
    entry = changed(training={"seq_len": tokens}, hardware={"gpu": device}, fits=fits)
    assert getattr(count_fits(decide(entries(entry))), verdict) == 1


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: 1", "is not a list"),
        ("- 5", "entry 0"),
        ("- {id: x, measured: {value_gib: 1}}", "framework: is missing"),
        ("- {id: x, framework: y}", "value_gib or fits"),
        ("- {id: x, framework: y, model: 5, fits: true}", "model: is not a mapping"),
        ("- [", "not YAML"),
    ],
)
def test_files_that_are_no_entries_are_refused(tmp_path, text, fault):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=fault):
        read_entries(path)
