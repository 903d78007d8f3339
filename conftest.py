"""The examples in Markdown and docstrings run as tests.

Markdown: ``python`` blocks and ``>>>`` sessions are executed; in ``console`` blocks the commands
that start with ``$ planner`` are, and what they print must be what the page says (``...`` stands
for anything); a ``yaml`` block that holds a whole file (``model:`` and ``cluster:``) must load.
"""

import os
import shlex
import subprocess
import sys
import tempfile
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, OutputChecker
from pathlib import Path

from sybil import Example, Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from sybil.parsers.rest import DocTestParser

ROOT = Path(__file__).parent
OPTIONS = ELLIPSIS | NORMALIZE_WHITESPACE


def _commands(block):
    """The block's ``$`` commands, each with what the page says it prints."""
    for piece in ("\n" + block).split("\n$ ")[1:]:
        command, _, printed = piece.partition("\n")
        yield command, printed


def _run(command):
    """Run a planner command in the repository's root; return what a person would see."""
    _, *arguments = shlex.split(command)
    start = "from planner.cli import main; main()"
    done = subprocess.run(  # noqa: S603 - our own command line
        [sys.executable, "-c", start, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def check_console(example: Example) -> str | None:
    """Compare the commands of a ``console`` block with their output."""
    checker = OutputChecker()
    for command, printed in _commands(example.parsed):
        if not command.startswith("planner "):
            continue
        seen = _run(command)
        if printed.strip() and not checker.check_output(printed, seen, OPTIONS):
            return f"$ {command}\nprints\n{seen}\nbut the page says\n{printed}"
    return None


def check_yaml(example: Example) -> str | None:
    """Load a ``yaml`` block that is a whole file."""
    from planner.errors import PlannerError  # noqa: PLC0415 - only if a page has such a block
    from planner.spec.load import load  # noqa: PLC0415

    text = example.parsed
    if not ("model:" in text and "cluster:" in text):
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "example.yaml"
        path.write_text(text)
        try:
            load(path)
        except PlannerError as error:
            return str(error)
    return None


markdown = Sybil(
    parsers=[
        PythonCodeBlockParser(doctest_optionflags=OPTIONS),
        CodeBlockParser("console", check_console),
        CodeBlockParser("yaml", check_yaml),
    ],
    patterns=["*.md"],
    excludes=[".venv/**", "CHANGELOG.md"],
)
docstrings = Sybil(
    parsers=[DocTestParser(optionflags=OPTIONS)],
    patterns=["planner/**/*.py"],
    document_types={".py": PythonDocStringDocument},
)

pytest_collect_file = (markdown + docstrings).pytest()
