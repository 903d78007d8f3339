"""An explanation as a person reads it."""

import pytest
from rich.console import Console

from planner.explain import make_explanation
from planner.report.explain import render
from tests.test_plan import spec_of


@pytest.mark.parametrize("width", [80, 200])
def test_keys_and_refusals_are_whole_however_narrow_the_terminal(width: int) -> None:
    explanation = make_explanation(spec_of(layout={"tp": 1, "pp": 2, "zero_stage": 1}))
    console = Console(width=width)
    with console.capture() as printed:
        console.print(render(explanation, width=width))
    words = printed.get().split()
    assert any(turned.refusal for turned in explanation.knobs)
    for turned in explanation.knobs:
        section, dot, key = turned.knob.change.split()[0].partition(".")
        assert {section + dot + key} <= set(words) or {section + dot, key} <= set(words)
        assert set(turned.refusal.split()) <= set(words)
