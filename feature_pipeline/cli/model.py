"""`model`: sentiment models on this machine - bring one here, look at what is here."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from feature_pipeline.cli.common import Json, console, print_json, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from feature_pipeline.settings import Settings
    from feature_pipeline.sources.finbert import FinbertScorer

model = typer.Typer(help="Sentiment models on this machine.", no_args_is_help=True)

Fetched = Literal["finbert", "finbert-int8"]
Known = Literal["vader", "finbert", "finbert-int8"]


@model.command()
def fetch(
    scorer: Annotated[
        Fetched, typer.Option(help="Whose model; quantised or not, it is the same files.")
    ] = "finbert",
    endpoint: Annotated[
        str,
        typer.Option(
            metavar="URL", help="Of the hub. Default: HF_ENDPOINT, or https://huggingface.co."
        ),
    ] = "",
    deadline: Annotated[float, typer.Option(min=1, help="Seconds for all of it.")] = 3600.0,
    as_json: Json = False,
) -> None:
    """Download the pinned release of a model, check it, and put it in place.

    About 440 MB, without a token. Run again, it goes on where it was interrupted. What is here and
    unharmed is left alone, and the hub is not asked.

    \b
    Examples:
      feature-pipeline model fetch
      feature-pipeline model fetch --endpoint https://hub.example.com --json | jq .files
    """
    from feature_pipeline.sources import hub

    chosen = _finbert(settings(), scorer)
    with _shown(quiet=as_json) as told:
        found = hub.fetch(
            chosen.release, chosen.models, endpoint=endpoint, deadline_s=deadline, told=told
        )
    if as_json:
        print_json(asdict(found))
        return
    size = sum(said["size"] for said in found.files.values())
    console().print(
        f"{found.model} {found.revision[:12]} is in place, {size / 1e6:,.0f} MB, checked: "
        f"{found.where}",
        soft_wrap=True,
    )
    if settings().scorer == "vader":
        console().print(
            f"to use it: FEATURE_PIPELINE_SCORER={scorer}; the days that were scored by vader are "
            "then scored again by the next backfill, or by the repair sensor",
            soft_wrap=True,
        )


@model.command()
def show(
    scorer: Annotated[
        Known | None, typer.Option(help="Which one; the active one unless given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Which model scores, at which revision, and whether its files are here and unharmed.

    \b
    Examples:
      feature-pipeline model show
      feature-pipeline model show --scorer finbert --json | jq .files
    """
    current = settings()
    found = dict(_facts(current, scorer or current.scorer))
    if as_json:
        print_json(found)
        return
    _print_facts(found)


def _finbert(current: Settings, scorer: str) -> FinbertScorer:
    from feature_pipeline.resources import scorer as made
    from feature_pipeline.sources.finbert import FinbertScorer

    chosen = made(current.model_copy(update={"scorer": scorer}))
    assert isinstance(chosen, FinbertScorer)
    return chosen


def _facts(current: Settings, name: str) -> Iterator[tuple[str, Any]]:
    from feature_pipeline.resources import scorer as made
    from feature_pipeline.sources import hub
    from feature_pipeline.sources.finbert import FinbertScorer

    chosen = made(current.model_copy(update={"scorer": name}))
    yield "scorer", name
    yield "active", name == current.scorer
    yield "model", chosen.model
    yield "revision", chosen.revision
    if not isinstance(chosen, FinbertScorer):
        yield "state", "part of the installation"
        return
    yield "where", str(chosen.where)
    here = hub.installed(chosen.release, chosen.models)
    if here is None:
        yield "state", "here, not fetched by us" if chosen.present else "not here"
        return
    harmed = hub.damaged(here)
    yield "state", f"damaged: {', '.join(harmed)}" if harmed else "here, unharmed"
    yield "fetched_at", here.fetched_at
    yield "endpoint", here.endpoint
    yield "files", here.files


def _print_facts(found: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for what, said in found.items():
        if what == "files":
            for name, file in said.items():
                line = f"{file['size']:,} bytes, sha256 {file['sha256']}, commit {file['commit']}"
                table.add_row(f"[dim]{name}[/]", line)
        elif what == "active":
            table.add_row("[dim]active[/]", "yes" if said else "no")
        else:
            table.add_row(f"[dim]{what.replace('_', ' ')}[/]", escape(str(said)))
    console().print(table)
    if found["state"].startswith(("not here", "damaged")):
        console().print("bring it here with: feature-pipeline model fetch")


def _shown(*, quiet: bool) -> AbstractContextManager[Callable[[str, int, int], None]]:
    """A bar per file on a terminal, nothing elsewhere."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    @contextmanager
    def shown() -> Iterator[Callable[[str, int, int], None]]:
        out = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
        with Progress(
            *columns, TimeRemainingColumn(), console=out, disable=quiet or not out.is_terminal
        ) as bars:
            tasks: dict[str, Any] = {}

            def told(name: str, done: int, size: int) -> None:
                if name not in tasks:
                    tasks[name] = bars.add_task(name, total=size)
                bars.update(tasks[name], completed=done)

            yield told

    return shown()
