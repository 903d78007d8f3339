"""Plans beside measurements that are made up from them, with known faults."""

from dataclasses import replace

import pytest
import yaml

from planner.plan import make_plan
from planner.spec.load import load
from planner.validate.compare import first_overflow, phase_name, points, summarise, wrong_terms
from planner.validate.job import RankResult, Reading

MODEL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
NUM_STEPS = 3


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    file = tmp_path_factory.mktemp("plan") / "spec.yaml"
    document = {
        "model": MODEL,
        "cluster": {"nodes": 1, "devices_per_node": 3, "device": "cpu"},
        "training": {"sequence_length": 16},
        "layout": {"zero_stage": 2},
    }
    file.write_text(yaml.safe_dump(document))
    return make_plan(load(file), every_rank=True)


def reading(step, phase, name):
    return Reading(
        step=step,
        phase=name,
        start_bytes=0,
        end_bytes=phase.end_bytes,
        peak_bytes=phase.peak_bytes,
        peak_terms={term.label: size for term, size in phase.terms.items()},
        end_terms={term.label: size for term, size in phase.end_terms.items()},
    )


def measured(plan):
    """What ranks would read that do as planned; the middle step is of no account."""
    results = []
    for each in plan.ranks:
        by_name = {phase.phase: phase for phase in each.phases}
        readings = [reading(-1, by_name["init"], "init")]
        for step in range(NUM_STEPS):
            for name in ("forward", "backward", "step"):
                phase = by_name[f"first_{name}" if step == 0 else name]
                real = reading(step, phase, name)
                readings.append(replace(real, peak_bytes=1) if step == 1 else real)
        results += [
            RankResult(rank=rank, outcome="done", readings=tuple(readings)) for rank in each.ranks
        ]
    return results


def test_every_rank_phase_and_quantity_is_a_point(plan):
    many = points(plan, measured(plan))
    assert {point.rank for point in many} == {0, 1, 2}
    assert len(many) == 3 * 7 * 2
    assert {point.error_bytes for point in many} == {0}
    assert wrong_terms(many) == []
    assert summarise(many).median_error == 0


def test_a_wrong_term_is_named_where_it_is_worst(plan):
    results = measured(plan)
    for place, extra in ((1, 40), (2, 700)):
        readings = list(results[place].readings)
        last = readings[-1]
        terms = dict(last.peak_terms) | {
            "step_copies": last.peak_terms.get("step_copies", 0) + extra
        }
        readings[-1] = replace(last, peak_bytes=last.peak_bytes + extra, peak_terms=terms)
        results[place] = replace(results[place], readings=tuple(readings))
    many = points(plan, results)
    worst = summarise(many).worst
    assert (worst.rank, worst.phase, worst.quantity) == (2, "step", "peak_allocated")
    assert worst.error_bytes == -700
    ((point, error),) = wrong_terms(many)
    assert (point.rank, error.term, error.error_bytes) == (2, "step_copies", -700)


def test_the_highest_of_several_micro_steps_counts_and_the_end_of_the_last(plan):
    result = measured(plan)[0]
    place = next(i for i, each in enumerate(result.readings) if each.step == 0)
    first = result.readings[place]
    again = replace(first, peak_bytes=first.peak_bytes - 8, end_bytes=first.end_bytes + 8)
    changed = (*result.readings[: place + 1], again, *result.readings[place + 1 :])
    errors = {
        point.quantity: point.error_bytes
        for point in points(plan, [replace(result, readings=changed)])
        if point.phase == "first_forward"
    }
    assert errors == {"peak_allocated": 0, "allocated": -8}


def test_the_phase_in_which_a_rank_failed_is_no_point(plan):
    result = measured(plan)[0]
    cut = replace(result, outcome="out_of_memory", readings=result.readings[:3])
    assert {point.phase for point in points(plan, [cut])} == {"init", "first_forward"}


def test_a_schedules_instructions_belong_to_the_plans_phases():
    def named(step, action):
        return phase_name(
            Reading(step=step, phase=action, start_bytes=0, end_bytes=0, peak_bytes=0)
        )

    assert named(0, "receive_activation") == "first_forward"
    assert named(2, "send_gradient") == "backward"
    assert named(2, "reduce_tied") == "reduce"
    assert named(-1, "init") == "init"


def test_the_first_phase_beyond_a_capacity(plan):
    rank = plan.ranks[0]
    init = next(phase for phase in rank.phases if phase.phase == "init")
    assert first_overflow(rank, init.peak_bytes - 1) == "init"
    assert first_overflow(rank, rank.peak.peak_bytes) is None
    assert first_overflow(rank, rank.peak.peak_bytes - 1) == rank.peak.phase
