"""The cases of experiments/003-cpu-suite, which is no package."""

import importlib.util
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "experiments" / "003-cpu-suite"


def load_suite():
    """The module that lists the cases."""
    spec = importlib.util.spec_from_file_location("suite_of_experiment_003", FOLDER / "suite.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
