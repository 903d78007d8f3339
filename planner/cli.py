"""The commands: parse, call one function, print."""

import gc
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from planner.commands import Commands, Told
from planner.errors import PlannerError

commands = Commands(
    "planner", "Memory of every device in distributed training, before a GPU is rented."
)

File = Annotated[Path, Told("The YAML file: model, cluster, training, layout.")]
ModelName = Annotated[str, Told("A catalogue name, a config.json, its folder, or an inventory.")]
AsJson = Annotated[bool, Told("Print the JSON document instead.", flag="json")]

DOES_NOT_FIT, BAD_INPUT = 1, 2
_OBJECTS_BETWEEN_COLLECTIONS = 200_000

INTERRUPTED = 130
"""As shells say it: 128 and the number of SIGINT."""


PIPED_WIDTH = 200
"""Columns where no terminal says how many there are, so that no line is cut in two."""


@commands.add("plan")
def plan(
    file: File,
    rank: Annotated[int | None, Told("Only this global rank.")] = None,
    as_json: AsJson = False,
) -> None:
    """Memory of every pipeline stage's worst rank; exit code 1 if it does not fit."""
    from planner.plan import make_plan, plan_rank
    from planner.report.plan import document, render, render_rank
    from planner.spec.load import load

    spec = _settled(load(file))
    made = make_plan(spec, every_rank=as_json) if rank is None else plan_rank(spec, rank)
    if as_json:
        _print_json(document(made))
    else:
        _print(render if rank is None else render_rank, made)
    if made.verdict == "does not fit":
        raise SystemExit(DOES_NOT_FIT)


@commands.add("search")
def search(
    file: File,
    top: Annotated[int, Told("How many of those that fit are shown.", least=1)] = 10,
    write: Annotated[
        Path | None,
        Told("A folder for files that run the best: plan, ds_config.json, launch script."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The layouts that fit, best first, and why the others do not; exit code 1 if none fits.

    Degrees beside an `auto` in the file's layout are kept, and what its section `search` lists is
    all that is tried; everything else is open, the micro-batch and recomputation too.
    """
    from time import perf_counter

    from planner.report.launch import launch_files, write_files
    from planner.report.search import document, render
    from planner.search.search import search
    from planner.spec.load import load

    answer = search(load(file), top=top, clock=perf_counter)
    if write is not None and answer.ranked:
        written = write_files(launch_files(answer.best.applied(answer.spec), answer.model), write)
        print("wrote " + ", ".join(map(str, written)), file=sys.stderr)
    if as_json:
        _print_json(document(answer))
    else:
        _print(render, answer)
    if not answer.ranked:
        raise SystemExit(DOES_NOT_FIT)


@commands.add("diff")
def diff(
    first: File,
    second: Annotated[Path, Told("Another such file.")],
    as_json: AsJson = False,
) -> None:
    """Two plans side by side, term by term."""
    from planner.plan import make_plan
    from planner.report.difference import document, render
    from planner.spec.load import load

    left, right = (make_plan(_settled(load(file))) for file in (first, second))
    if as_json:
        _print_json(document(left, right))
    else:
        _print(render, left, right)


@commands.add("explain")
def explain(file: File, as_json: AsJson = False) -> None:
    """What is alive at the peak, who allocates it, and what each knob would change."""
    from planner.explain import make_explanation
    from planner.report.explain import document, render
    from planner.spec.load import load

    explanation = make_explanation(_settled(load(file)))
    if as_json:
        _print_json(document(explanation))
    else:
        _print(render, explanation)


@commands.add("params")
def params(
    model: ModelName,
    context: Annotated[
        int | None,
        Told("Tokens of context; default: the model's own, up to 4096.", least=1),
    ] = None,
    batch: Annotated[int, Told("Sequences served at once.", least=1)] = 1,
    tp: Annotated[int, Told("Devices that share every layer.", least=1)] = 1,
    as_json: AsJson = False,
) -> None:
    """Parameters by component, their bytes by format, and the memory of inference."""
    from planner.model.load import load_model
    from planner.report.params import params_document, render

    found = load_model(model, folder=Path())
    how: dict[str, Any] = {"context_tokens": context, "batch": batch, "tp": tp}
    if as_json:
        _print_json(params_document(found, **how))
    else:
        _print(render, found, **how)


@commands.add("accuracy")
def accuracy(
    measurements: Annotated[Path, Told("Published measurements, a YAML list.")],
    fits: Annotated[Path | None, Told("Runs that fitted or did not, a YAML list.")] = None,
    by: Annotated[
        Literal["framework", "cluster", "term"], Told("What the table is told by.")
    ] = "framework",
    as_json: AsJson = False,
) -> None:
    """Predictions beside what other people measured on real GPUs and published."""
    from planner.accuracy.compare import compare, decide
    from planner.accuracy.entries import read_entries
    from planner.report.accuracy import document, render

    entries = read_entries(measurements)
    constraints = read_entries(fits) if fits else entries
    rows, verdicts = compare(entries), decide(constraints)
    if as_json:
        _print_json(document(rows, verdicts))
    else:
        _print(render, rows, verdicts, by=by)


@commands.add("validate")
def validate(
    file: File,
    steps: Annotated[int, Told("Optimizer steps of the run.", least=1)] = 3,
    launcher: Annotated[Literal["ray", "local"], Told("Who starts the ranks.")] = "ray",
    address: Annotated[
        str | None, Told("A Ray that is there; default: one of its own, here.")
    ] = None,
    submit: Annotated[bool, Told("As a job of the Ray whose dashboard is at --address.")] = False,
    out: Annotated[
        Path | None, Told("Folder of the record; default: a new one in validations/.")
    ] = None,
    twin: Annotated[
        bool | None,
        Told("Run a small twin on CPU ranks; default: where the cluster is not here."),
    ] = None,
    timeout: Annotated[
        float, Told("Seconds without news after which a rank hangs.", least=1)
    ] = 600.0,
    as_json: AsJson = False,
) -> None:
    """Train a few steps with DeepSpeed and compare; exit code 1 if it differs."""
    from planner.report.plan import document as describe
    from planner.report.validation import render
    from planner.spec.load import load
    from planner.validate.start import TWIN_MEMORY_BYTES, Launch, needs_twin, start
    from planner.validate.twin import make_twin
    from planner.validate.validate import document

    spec = _settled(load(file))
    spec.only_deepspeed("validate")
    here = address is None and not submit
    if twin or (twin is None and here and needs_twin(spec)):
        small = make_twin(spec, memory_bytes=TWIN_MEMORY_BYTES)
        print("a small twin of the file runs here: " + "; ".join(small.changes), file=sys.stderr)
        spec = small.spec
    with _progress() as progress:
        made = start(
            spec,
            launch=Launch.SUBMIT if submit else Launch[launcher.upper()],
            address=address,
            out=out,
            steps=steps,
            silence_seconds=timeout,
            describe=describe,
            progress=progress,
        )
    if as_json:
        _print_json(document(made))
    else:
        _print(render, made)
        print(f"recorded in {made.run}")  # a path is never cut
    if made.measured == "failed":
        raise SystemExit(BAD_INPUT)
    if not made.agrees:
        raise SystemExit(DOES_NOT_FIT)


@commands.add("compare")
def compare(
    runs: Annotated[list[Path], Told("Folders that `planner validate` made.")],
) -> None:
    """Recorded runs beside today's plan, the worst points first; exit code 1 if one differs."""
    from planner.report.validation import render_comparison
    from planner.validate.validate import read_validation

    made = [read_validation(run) for run in runs]
    _print(render_comparison, made)
    if not all(each.agrees for each in made):
        raise SystemExit(DOES_NOT_FIT)


@commands.add("rehearse")
def rehearse(
    files: Annotated[list[Path], Told("YAML files: model, cluster, training, layout.")],
    ranks: Annotated[
        str, Told("worst, ends (of the pipeline), all that differ, or 0,17.")
    ] = "worst",
    steps: Annotated[int, Told("Optimizer steps.", least=2)] = 2,
    allocator: Annotated[str, Told("PYTORCH_ALLOC_CONF, e.g. expandable_segments:True.")] = "",
    trace: Annotated[
        Path | None, Told("For pytorch.org/memory_viz: a pickle, or JSON if it ends in .json.")
    ] = None,
    figure: Annotated[Path | None, Told("A picture of it, .svg or .png; needs matplotlib.")] = None,
    out: Annotated[
        Path | None, Told("JSON lines, one a file; what is there already is not done again.")
    ] = None,
    jobs: Annotated[int, Told("Files at once; default: as many as there are cores.", least=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """The real engine as some ranks of the layout, without memory; exit code 1 if it differs."""
    from tempfile import mkdtemp

    if len(files) > 1 or out is not None:
        alone = {"--trace": trace, "--figure": figure, "--allocator": allocator}
        _refuse_with_many([option for option, value in alone.items() if value])
        _rehearse_many(files, ranks, steps=steps, out=out, jobs=jobs, as_json=as_json)
        return

    from planner.memory.allocator.settings import read_settings
    from planner.rehearse.run import document, rehearse
    from planner.report.rehearsal import draw_timelines, render
    from planner.spec.load import load

    spec = load(files[0])
    logs = Path(mkdtemp(prefix="planner-rehearsal-"))
    drawn = None if figure is None else logs / "drawn.json"
    with _progress() as progress:
        made = rehearse(
            spec,
            ranks,
            steps=steps,
            logs=logs,
            progress=progress,
            settings=read_settings(allocator),
            traces=[path for path in (trace, drawn) if path],
        )
    if figure is not None and drawn is not None:
        draw_timelines(made, drawn, figure)
    if as_json:
        _print_json(document(made))
    else:
        _print(render, made)
    if made.failed:
        raise SystemExit(BAD_INPUT)
    if not made.agrees:
        raise SystemExit(DOES_NOT_FIT)


def _refuse_with_many(options: list[str]) -> None:
    from planner.errors import LaunchError

    if options:
        raise LaunchError(f"{options[0]}: is for one file without --out; leave it out")


def _rehearse_many(
    files: list[Path], ranks: str, *, steps: int, out: Path | None, jobs: int, as_json: bool
) -> None:
    from planner.rehearse.many import Store, agrees, rehearse_files
    from planner.report.rehearsals import render

    store = Store(out or Path("rehearsals.jsonl"))
    records = []
    with _progress():
        for record in rehearse_files(files, ranks, steps=steps, store=store, jobs=jobs):
            records.append(record)
            sys.stderr.write(f"{len(records)} of {len(files)}: {record['name']}\n")
    if as_json:
        _print_json({"schema": "planner.rehearsals/1", "rehearsals": records})
    else:
        _print(render, records)
    if any(record["document"] is None or record["document"]["failures"] for record in records):
        raise SystemExit(BAD_INPUT)
    if not all(agrees(record) for record in records):
        raise SystemExit(DOES_NOT_FIT)


@commands.add("models")
def models(as_json: AsJson = False) -> None:
    """The models that the catalogue knows by name."""
    from planner.report.models import document, render

    if as_json:
        _print_json(document())
    else:
        _print(render)


@commands.add("devices")
def devices(as_json: AsJson = False) -> None:
    """The devices and links that the catalogue knows by name."""
    from planner.report.devices import document, render

    if as_json:
        _print_json(document())
    else:
        _print(render)


@commands.add("model import")
def import_(
    folder: Annotated[Path, Told("Holds the config.json of a transformers model.")],
    output: Annotated[
        Path | None, Told("Where the inventory goes; default: inventory.json there.")
    ] = None,
) -> None:
    """Build a model once with transformers, without memory, and store its parameters."""
    from planner.validate.model_import import import_model, write_inventory

    target = output or folder / "inventory.json"
    write_inventory(import_model(folder), target)
    print(f"wrote {target}; plan it with `model: {target}`")


def _settled(spec: Any) -> Any:
    """The file itself, or with the best layout in it where that is left open."""
    if spec.layout != "auto":
        return spec
    from time import perf_counter

    from planner.search.search import search

    chosen = search(spec, top=1, clock=perf_counter).best
    print(f"the search chose {chosen}", file=sys.stderr)
    return chosen.applied(spec)


def main() -> None:
    """Run a command; what the user can mend is one message on stderr and exit code 2."""
    _start_fast()
    try:
        commands.run(sys.argv[1:])
    except PlannerError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Whoever read us has seen enough; leave no message about a closed pipe behind.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _start_fast() -> None:
    """Let the collector not go through all that was imported again and again."""
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)


@contextmanager
def _progress() -> Iterator[Any]:
    """A line a reading, on what is now stderr; launchers send Ray's own words elsewhere."""
    stderr = sys.stderr

    def tell(rank: int | None, told: Any) -> None:
        who = "" if rank is None else f"rank {rank}  "
        print(f"{who}{_words(told)}", file=stderr, flush=True)

    try:
        yield tell
    except KeyboardInterrupt:
        print("interrupted: no rank runs any more", file=stderr)
        raise SystemExit(INTERRUPTED) from None


def _words(told: Any) -> str:
    """A note as it is; of a reading the phase and its highest point."""
    from planner.validate.job import Note

    if isinstance(told, Note):
        return told.text
    step = "start" if told.step < 0 else f"step {told.step}"
    return f"{step}  {told.phase}  {told.peak_bytes / 2**20:,.1f} MiB"


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=2))


def _print(render: Any, *arguments: Any, **options: Any) -> None:
    """Draw for the width of this terminal."""
    from rich.console import Console

    told = "COLUMNS" in os.environ or sys.stdout.isatty()
    console = Console(highlight=False, width=None if told else PIPED_WIDTH)
    console.print(render(*arguments, width=console.width, **options))


if __name__ == "__main__":
    main()
