"""Megatron's pipeline layouts, written out by hand."""

import pytest

from planner.accuracy.entries import read_entries
from planner.accuracy.translate.splits import blocks_per_stage, segments


def entry(tmp_path, layers, **parallel):
    file = tmp_path / "one.yaml"
    rows = "".join(f"    {key}: {value}\n" for key, value in parallel.items())
    file.write_text(
        "- id: one\n  framework: Megatron-LM\n  model:\n"
        f"    num_layers: {layers}\n  parallel:\n    pp: 4\n{rows}  fits: true\n"
    )
    return read_entries(file)[0]


@pytest.mark.parametrize(
    ("layers", "parallel", "blocks"),
    [
        (12, {}, ()),
        (12, {"decoder_first_pipeline_num_layers": 2}, (2, 3, 3, 3)),
        (14, {"account_for_embedding_in_pipeline_split": "true",
              "account_for_loss_in_pipeline_split": "true"}, (3, 4, 4, 3)),
        (7, {"pipeline_model_parallel_layout": '"Et*2|tt|t|ttL"'}, (2, 2, 1, 2)),
        (8, {"pipeline_model_parallel_layout": '"Et|t*7L|||||||"'}, (1, 7, 0, 0)),
    ],
)  # fmt: skip
def test_blocks_of_each_rank(tmp_path, layers, parallel, blocks):
    assert blocks_per_stage(entry(tmp_path, layers, **parallel), 4) == blocks


def test_repetitions_are_written_out():
    assert segments("Et*3|(tt|)*2mL") == ["Ettt", "tt", "tt", "mL"]
