"""The pages under docs/reference, from the code that they describe: `python docs/build.py`.

A test compares them with what is committed. Prose lives in the other pages, pictures of the UI are
made by `screenshots.py`.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

REFERENCE = Path(__file__).parent / "reference"
_MADE = "<!-- Made by docs/build.py: change the code, then run `make docs`. -->"


def pages() -> dict[Path, str]:
    """Every generated page."""
    made = {
        "settings": settings(),
        "commands": commands(),
        "features": features(),
        "tables": tables(),
        "automation": automation(),
    }
    return {
        REFERENCE / f"{name}.md": _MADE + "\n\n" + "\n".join(lines).strip() + "\n"
        for name, lines in made.items()
    }


def settings() -> Iterator[str]:
    """Environment variables with defaults and meaning."""
    from feature_pipeline.settings import PREFIX, Settings

    yield "# Settings\n"
    yield "Environment variables. An empty one counts as not set; a wrong one stops every command"
    yield "with a line that names it and never shows what it holds.\n"
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.default
        shown = "" if default in (None, {}) else f"`{default}`"
        rows.append((f"`{PREFIX}{name.upper()}`", shown, field.description or ""))
    yield from _table(("variable", "default", "meaning"), rows)
    yield "\nPercent-encode special characters in addresses (`@` as `%40`, `/` as `%2F`)."


def commands() -> Iterator[str]:
    """Every command as its `--help` has it."""
    import typer
    from typer.cli import get_docs_for_click

    from feature_pipeline.cli import app

    command = typer.main.get_command(app)
    text = get_docs_for_click(
        obj=command, ctx=typer.Context(command), name="feature-pipeline", title="Commands"
    )
    yield html.unescape(text).strip()


def features() -> Iterator[str]:
    """The catalogue: one line per declared feature."""
    from feature_pipeline.features.catalogue import definitions

    yield "# Features\n"
    yield "One declaration each, in `feature_pipeline/features/declarations.py`. Lookback: sessions"
    yield "before the current one, or UTC days for events. In tables of `1h`, `5m` and `1m` windows"
    yield "count bars: `returns_5d` is `returns_5` there (how-to/intraday.md).\n"
    rows = definitions(["1d"])
    for table in rows["source_table"].unique(maintain_order=True):
        yield f"## {table}\n"
        names = ("column", "version", "unit", "category", "lookback_bars", "lookback_days")
        yield from _table(
            ("column", "version", "unit", "category", "bars", "days", "what it is"),
            rows.filter(source_table=table).select(*names, "description").iter_rows(),
        )
        yield ""


def tables() -> Iterator[str]:
    """Every table with its columns, units and rules."""
    from feature_pipeline.features.catalogue import TABLES
    from feature_pipeline.schemas import POSITION_RECONCILIATION

    yield "# Tables\n"
    yield "Tables of `1h`, `5m` and `1m` are as those of `1d`: see how-to/intraday.md.\n"
    for table in (*TABLES.values(), POSITION_RECONCILIATION):
        yield f"## {table.asset}\n"
        where = "" if table.table == table.asset else f" Rows lie in `{table.table}`."
        yield f"{table.description}{where}\n"
        yield f"Key: {', '.join(f'`{name}`' for name in table.key)}. Write mode: {table.mode}. "
        yield f"Its day is that of `{table.day_column}`.\n"
        yield from _table(
            ("column", "type", "unit", "what it is"),
            (
                (
                    f"`{c.name}`",
                    c.sql_type + (", null" if c.nullable else ""),
                    c.unit,
                    c.description,
                )
                for c in table.columns
            ),
        )
        if table.rules:
            yield "\nA row goes to quarantine where\n"
            yield from (f"- {rule.reason}" for rule in table.rules)
        yield ""


def automation() -> Iterator[str]:
    """Schedules, sensors, jobs and checks as the definitions have them."""
    from feature_pipeline.definitions import defs

    repository = defs.get_repository_def()
    yield "# Automation\n"
    yield "On the sample's universe; another one has the schedules of its own calendars.\n"
    yield "## Schedules\n"
    yield from _table(
        ("schedule", "cron", "time zone", "at first", "what it does"),
        (
            (
                f"`{s.name}`",
                ", ".join(f"`{c}`" for c in _crons(s.cron_schedule)),
                s.execution_timezone or "UTC",
                s.default_status.value.lower(),
                _line(s.description),
            )
            for s in sorted(repository.schedule_defs, key=lambda s: s.name)
        ),
    )
    yield "\n## Sensors\n"
    yield from _table(
        ("sensor", "looks every", "at first", "what it does"),
        (
            (
                f"`{s.name}`",
                f"{s.minimum_interval_seconds or 30} s",
                s.default_status.value.lower(),
                _line(s.description),
            )
            for s in sorted(repository.sensor_defs, key=lambda s: s.name)
        ),
    )
    yield "\n## Checks\n"
    graph = repository.asset_graph
    asked: dict[tuple[str, bool, str], list[str]] = {}
    for key in sorted(graph.asset_check_keys):
        spec = graph.get_check_spec(key)
        same = (spec.name, spec.blocking, _line(spec.description))
        asked.setdefault(same, []).append(spec.asset_key.to_user_string())
    yield from _table(
        ("check", "blocks what follows", "what it asks", "of"),
        (
            (f"`{name}`", "yes" if blocking else "", what, ", ".join(assets))
            for (name, blocking, what), assets in asked.items()
        ),
    )


def _crons(schedule: str | Sequence[str]) -> Sequence[str]:
    return [schedule] if isinstance(schedule, str) else schedule


def _line(text: str | None) -> str:
    """The first paragraph, on one line."""
    return " ".join((text or "").strip().split("\n\n")[0].split())


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        cells = (str(cell).replace("|", "\\|").replace("\n", " ") for cell in row)
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
