"""Every broken file is refused with its file, line, key, fault and mend."""

import os

import pytest

from planner.errors import SpecError
from planner.spec.load import load
from tests.spec.broken import BROKEN, DS, GOOD, good


def fault_lines(error):
    return str(error.value).splitlines()


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.id)
def test_a_broken_file_is_told_where_what_and_how_to_mend_it(case, tmp_path):
    path = case.write(tmp_path)
    with pytest.raises(SpecError) as error:
        load(path)
    lines = fault_lines(error)
    where = case.where(tmp_path)
    own = [line for line in lines if line.startswith(where)]
    assert own, f"no line starts with {where}:\n{error.value}"
    assert any(all(piece in line for piece in case.says) for line in own), error.value
    assert len(lines) == case.num_faults, error.value


def test_the_table_is_as_long_as_promised_and_names_every_case_once():
    assert len(BROKEN) >= 60
    assert len({case.id for case in BROKEN}) == len(BROKEN)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(SpecError, match="is a folder; name the file in it"):
        load(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SpecError, match="not a regular file; name a YAML file"):
        load(tmp_path / "pipe")


def test_a_folder_is_no_deepspeed_configuration(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(good(DS, "  config: .\n"))
    with pytest.raises(SpecError, match=r":16: deepspeed.config: .* is a folder; name the file"):
        load(path)


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, ""])
def test_a_path_that_no_file_can_have(path):
    with pytest.raises(SpecError, match="; "):
        load(path)


def test_all_faults_are_told_at_once_in_the_order_of_the_lines(tmp_path):
    path = tmp_path / "spec.yaml"
    text = good("  nodes: 2", "  nodes: two").replace("tp: 2", "tp: x").replace("bf16", "fp8")
    path.write_text(text.replace("reduce_bucket_size", "bucket"))
    with pytest.raises(SpecError) as error:
        load(path)
    places = [line.split(": ")[:2] for line in fault_lines(error)]
    assert places == [
        [f"{path}:3", "cluster.nodes"],
        [f"{path}:10", "training.precision"],
        [f"{path}:12", "layout.tp"],
        [f"{path}:16", "deepspeed.zero_optimization.bucket"],
    ]


def test_the_good_file_is_good(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(GOOD)
    assert load(path).fixed_layout.dp == 4
