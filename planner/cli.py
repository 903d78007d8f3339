"""The commands: parse, call one function, print."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from planner.errors import PlannerError

app = typer.Typer(
    name="planner",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Memory of every device in distributed training, before a GPU is rented.",
)
model_app = typer.Typer(no_args_is_help=True, help="Models that the catalogue does not have.")
app.add_typer(model_app, name="model")

File = Annotated[Path, typer.Argument(help="The YAML file: model, cluster, training, layout.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the JSON document instead.")]

DOES_NOT_FIT, BAD_INPUT = 1, 2


@app.command()
def plan(
    file: File,
    rank: Annotated[int | None, typer.Option(help="Only this global rank.")] = None,
    as_json: AsJson = False,
) -> None:
    """Memory of every pipeline stage's worst rank; exit code 1 if it does not fit."""
    from planner.plan import make_plan, plan_rank
    from planner.report.plan import document, render, render_rank
    from planner.spec.load import load

    spec = load(file)
    made = make_plan(spec, every_rank=as_json) if rank is None else plan_rank(spec, rank)
    if as_json:
        _print_json(document(made))
    else:
        _print(render if rank is None else render_rank, made)
    if made.verdict == "does not fit":
        raise typer.Exit(DOES_NOT_FIT)


@app.command()
def explain(file: File, as_json: AsJson = False) -> None:
    """What is alive at the peak, who allocates it, and what each knob would change."""
    from planner.explain import make_explanation
    from planner.report.explain import document, render
    from planner.spec.load import load

    explanation = make_explanation(load(file))
    if as_json:
        _print_json(document(explanation))
    else:
        _print(render, explanation)


def main() -> None:
    """Run a command; what the user can mend is one message on stderr and exit code 2."""
    try:
        app()
    except PlannerError as error:
        typer.secho(str(error), err=True, fg="red")
        sys.exit(BAD_INPUT)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(BAD_INPUT)


def _print_json(document: dict[str, Any]) -> None:
    typer.echo(json.dumps(document, indent=2))


def _print(render: Any, *arguments: Any) -> None:
    """Draw for the width of this terminal; piped output gets a width that keeps lines whole."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    console.print(render(*arguments, width=console.width))
