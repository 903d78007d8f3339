"""The JSON Schema against the loader and against its own copy on disk."""

import json

import jsonschema
import pytest
import yaml

from planner.spec.schema import SCHEMA_PATH, render
from tests.spec.broken import CLUSTER, GOOD, KEYS, NUMBERS

SCHEMA = json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))
ONLY_THE_LOADER_KNOWS = {
    "unknown-device", "device-half-told", "device-like-nothing", "unknown-link",  # catalogues
    "nan", "hundred-digits", "five-thousand-digits", "json-infinity",  # no JSON
    "float-overflow", "memory-of-nothing",
    "exponent", "yes-for-true", "underscores",  # YAML 1.1 and 1.2 read them differently
    "model-of-nothing",
}  # fmt: skip


def refused(text):
    return list(jsonschema.Draft202012Validator(SCHEMA).iter_errors(yaml.safe_load(text)))


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_the_file_is_what_the_code_derives():
    message = "run `python -m planner.spec.schema`"
    assert SCHEMA_PATH.read_text(encoding="utf-8") == render(), message


def test_a_good_file_is_valid():
    assert refused(GOOD) == []


@pytest.mark.parametrize("layout", ["auto", "{tp: 8, pp: auto}", "{zero_stage: 3, dp: 2}"])
@pytest.mark.parametrize("bucket", ["auto", "5.0e+8", "100"])
def test_what_the_loader_takes_is_valid(layout, bucket):
    text = GOOD[: GOOD.index("layout:")] + f"layout: {layout}\n"
    zero = f"{{stage: 3, reduce_bucket_size: {bucket}, offload_param: {{device: cpu}}}}"
    assert refused(text + f"deepspeed: {{zero_optimization: {zero}}}\n") == []


CASES = [case for case in KEYS + NUMBERS + CLUSTER if case.id not in ONLY_THE_LOADER_KNOWS]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_what_the_loader_refuses_is_not_valid(case):
    assert refused(case.text)


def test_all_sections_are_described():
    for name, section in SCHEMA["$defs"].items():
        assert section["description"], name
        assert section.get("additionalProperties", True) is (name == "SwitchKeys"), name


def test_no_keyword_is_unknown_to_json_schema():
    assert '"ge"' not in json.dumps(SCHEMA)
    assert '"gt"' not in json.dumps(SCHEMA)
