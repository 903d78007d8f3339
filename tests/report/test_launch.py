"""The files of a chosen layout: they load, they parse, they say the same."""

import json
import subprocess

import pytest
import yaml

from planner.errors import SpecError
from planner.model.load import load_model
from planner.report.launch import ds_config, launch_files, megatron_arguments, write_files
from planner.search.space import make_space
from planner.spec.load import load
from tests.search.small import DENSE, SPARSE, searched


def settled(spec, number=0):
    model = load_model(spec.model, folder=spec.folder)
    candidates = list(make_space(spec, model).candidates())
    return candidates[number].applied(spec), model


@pytest.mark.parametrize("number", [0, 40, -1])
def test_the_plan_is_the_layout_that_was_chosen(number, tmp_path):
    spec, model = settled(searched(DENSE), number)
    write_files(launch_files(spec, model), tmp_path)
    read = load(tmp_path / "plan.yaml")
    assert (read.layout, read.training, read.deepspeed) == (
        spec.layout,
        spec.training,
        spec.deepspeed,
    )


def test_the_configuration_agrees_with_the_plan(tmp_path):
    spec, model = settled(searched(SPARSE, search={"ep": 4, "sp": 2, "zero_stage": 2, "tp": 1}))
    files = launch_files(spec, model)
    (tmp_path / "ds_config.json").write_text(files["ds_config.json"])
    document = yaml.safe_load(files["plan.yaml"]) | {"deepspeed": {"config": "ds_config.json"}}
    del document["training"]["global_batch_size"], document["layout"]["zero_stage"]
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(document))
    read = load(tmp_path / "plan.yaml")
    assert read.layout == spec.layout
    assert read.training.global_batch_size == 16
    assert document["layout"]["ep"] == 4


def test_batches_multiply():
    spec, model = settled(searched(DENSE, search={"tp": 2, "pp": 2}))
    document = ds_config(spec, model)
    sizes = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    assert document["train_batch_size"] == 16
    assert document[sizes[0]] * document[sizes[1]] * spec.layout.dp == 16


def test_scripts_are_shell(tmp_path):
    spec, model = settled(searched(DENSE, devices=16))
    for path in write_files(launch_files(spec, model), tmp_path):
        if path.suffix == ".sh":
            subprocess.run(["bash", "-n", path], check=True)  # noqa: S607


def test_a_ray_job_has_the_devices_of_the_cluster():
    spec, model = settled(searched(DENSE, devices=16))
    job = yaml.safe_load(launch_files(spec, model)["ray_job.yaml"])
    (workers,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert workers["replicas"] * int(workers["rayStartParams"]["num-gpus"]) == 16


def test_megatron_is_told_its_degrees():
    training = {"implementation": "megatron"}
    spec, model = settled(
        searched(DENSE, training=training, search={"tp": 2, "pp": 4, "recompute": "selective"})
    )
    told = megatron_arguments(spec)
    assert "--tensor-model-parallel-size 2" in told
    assert "--pipeline-model-parallel-size 4" in told
    assert "--recompute-granularity selective" in told
    assert "megatron_args.txt" in launch_files(spec, model)
    assert "megatron_args.txt" not in launch_files(*settled(searched(DENSE, search={"pp": 1})))


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match=r"--write .*; name a folder"):
        write_files({"a": json.dumps({})}, tmp_path / "file")
