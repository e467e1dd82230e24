"""Commands about the servers: from `demo` and `up` to `doctor`, `storage` and `logs`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from feature_pipeline.cli import complete
from feature_pipeline.cli.common import Json, console, print_json, settings

if TYPE_CHECKING:
    from collections.abc import Iterator


def demo(
    ui: Annotated[bool, typer.Option(help="Stay, with the Dagster UI, until Ctrl-C.")] = True,
) -> None:
    """Everything from nothing: servers, a backfill of the sample, vectors read back from Redis.

    \b
    Examples:
      feature-pipeline demo
      feature-pipeline demo --no-ui
    """
    from feature_pipeline.cli import terminal
    from feature_pipeline.cli.backfill import backfill_on
    from feature_pipeline.demo import DAYS, pending, published
    from feature_pipeline.resources import prepare_database
    from feature_pipeline.stack import Stack, foreground

    out = console()
    with foreground.until_told(), Stack(settings()) as stack:
        for name, address in stack.addresses():
            out.print(f"{name:<11} {address}", soft_wrap=True)
        prepare_database(stack.owner_database_url)
        stack.prepare_dagster()
        current = stack.resolved_settings()
        if pending(current):
            backfill_on(stack, *DAYS)
        else:
            out.print("every partition is up to date")
        answers = published(current)
        if ui or answers is None:
            with out.status("starting Dagster"):
                stack.start_dagster()
        with out.status("waiting for the sensor to publish"):
            answers = answers or published(current, wait=True)
        out.print()
        out.print("[bold]The newest state vector of each symbol, read back from Redis[/]")
        out.print(terminal.vectors(answers or {}))
        if not ui:
            return
        out.print()
        out.print(
            f"Dagster UI  [bold]{stack.ui_url}[/]  (this machine only: it asks for no password)"
        )
        out.print("Ctrl-C stops it; a second run reuses what is there.")
        foreground.stay()


def up(
    ui: Annotated[bool, typer.Option(help="Dagster's UI, daemon and code server as well.")] = True,
) -> None:
    """Start the stack in the background: PostgreSQL, Redis and Dagster, migrated and ready.

    \b
    Examples:
      feature-pipeline up
      FEATURE_PIPELINE_UI_PORT=3000 feature-pipeline up
    """
    from feature_pipeline.stack import Stack, supervisor

    current = settings()
    out = console()
    pid = supervisor.pid_of(current.home)
    if pid is None:
        with out.status("starting"):
            supervisor.launch(current, ui=ui)
    else:
        out.print(f"already up (supervisor {pid})")
    stack = Stack(current).attach()
    for name, address in stack.addresses():
        out.print(f"{name:<11} {address}", soft_wrap=True)
    if stack.ui_url:
        out.print("The UI asks for no password: it listens on this machine only.")
    elif ui:
        out.print("The stack was started without the UI: feature-pipeline down, then up")
    out.print("Stop it: feature-pipeline down")


def down(
    delete: Annotated[bool, typer.Option("--delete", help="Delete its data as well.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Stop the stack of this home, whoever started it.

    \b
    Examples:
      feature-pipeline down
      feature-pipeline down --delete --yes
    """
    from feature_pipeline.stack import Stack, supervisor

    current = settings()
    out = console()
    stack = Stack(current)
    if delete and not yes:
        typer.confirm(f"Delete every row and key under {current.home}?", abort=True)
    stopped = supervisor.bring_down(stack)
    out.print(f"stopped (process {', '.join(map(str, stopped))})" if stopped else "nothing was up")
    if delete:
        left = stack.delete()
        out.print(f"deleted the data of {current.home}", soft_wrap=True)
        for path in left:
            out.print(f"left alone, not ours: {path}", soft_wrap=True)


def run(context: typer.Context) -> None:
    """Run a command inside the stack's environment; its exit code is ours.

    \b
    Examples:
      feature-pipeline run -- python train.py
      feature-pipeline run -- sh -c 'psql "$FEATURE_PIPELINE_DATABASE_URL"'
      feature-pipeline run -- dagster dev -w workspace.yaml
    """
    if not context.args:
        raise typer.BadParameter("give a command: feature-pipeline run -- COMMAND ...")
    from feature_pipeline.stack import Stack, foreground

    with foreground.until_told(), Stack(settings()) as stack:
        stack.prepare_dagster()
        code = foreground.run(context.args, stack.environment())
    raise typer.Exit(code)


def migrate() -> None:
    """Bring the database's tables up to date.

    \b
    Examples:
      feature-pipeline migrate
      FEATURE_PIPELINE_DATABASE_URL=postgresql://user@host/db feature-pipeline migrate
    """
    from feature_pipeline.resources import prepare_database
    from feature_pipeline.stack import Stack, foreground

    with foreground.until_told(), Stack(settings()) as stack:
        prepare_database(stack.owner_database_url)
        stack.prepare_dagster()
    console().print("the database is up to date")


def upkeep(
    to: Annotated[
        str, typer.Option(metavar="DIR", help="Where old months go; default: `archive` in home.")
    ] = "",
    dry_run: Annotated[bool, typer.Option(help="Say what would be done, and do nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Keep the trading side's logs in order: a partition per month ahead, old months to Parquet.

    Months of audit.decisions and audit.system_events that ended more than a year ago are exported,
    then detached; their tables stay until you drop them. For cron, once a month.

    \b
    Examples:
      feature-pipeline upkeep --dry-run
      feature-pipeline upkeep --to /mnt/archive
    """
    from dataclasses import asdict
    from pathlib import Path

    from feature_pipeline.stack import Stack, foreground
    from feature_pipeline.storage.audit_log import upkeep as keep_up
    from feature_pipeline.storage.database import Database

    current = settings()
    directory = Path(to).expanduser().absolute() if to else current.home / "archive"
    with foreground.until_told(), Stack(current) as stack:
        timeout_s = current.database_timeout_s
        with Database(stack.owner_database_url, timeout_s, name="feature_pipeline upkeep") as held:
            done = keep_up(held, directory, dry_run=dry_run)
    if as_json:
        print_json({**asdict(done), "archived": [_file(a) for a in done.archived]})
        return
    out = console()
    would = "would be " if dry_run else ""
    for name in done.made:
        out.print(f"{name}: {would}made")
    for month in done.archived:
        out.print(
            f"audit.{month.partition}: {month.rows} rows {would}exported to {month.path} and "
            f"{would}detached",
            soft_wrap=True,
        )
    if not done.made and not done.archived:
        out.print("nothing to do: partitions are there, and no month is older than a year")


def _file(month: Any) -> dict[str, Any]:
    return {"partition": month.partition, "rows": month.rows, "path": str(month.path)}


def doctor(as_json: Json = False) -> None:
    """Check settings, servers and tables: what is right, what is missing, how to fix it.

    Looks only. The exit code is 1 where something is wrong.

    \b
    Examples:
      feature-pipeline doctor
      feature-pipeline doctor --json | jq '.[] | select(.right | not)'
    """
    from dataclasses import asdict

    from feature_pipeline.stack import doctor as checks

    if as_json:
        findings = list(checks.findings())
        print_json([asdict(finding) for finding in findings])
    else:
        findings = list(_shown(checks.findings()))
    if not all(finding.right for finding in findings):
        raise typer.Exit(1)


def _shown(findings: Iterator[Any]) -> Iterator[Any]:
    from rich.markup import escape
    from rich.table import Table

    table = Table("", box=None, pad_edge=False)
    for heading in ("what", "found", "how to fix it"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        mark = "[green]right[/]" if finding.right else "[red]wrong[/]"
        table.add_row(mark, *map(escape, (finding.what, finding.found, finding.fix)))
        yield finding
    console().print(table)


# -- storage --------------------------------------------------------------------------------------


def storage(as_json: Json = False) -> None:
    """What is stored, the room it takes and how long it is kept: tables, ledger, Redis, Dagster.

    Policies are those of the table storage_policies; plain PostgreSQL keeps everything.

    \b
    Examples:
      feature-pipeline storage
      feature-pipeline storage --json | jq '.tables[] | {table, total}'
    """
    from dataclasses import asdict

    from feature_pipeline.errors import FeaturePipelineError
    from feature_pipeline.features.catalogue import ALL_TABLES
    from feature_pipeline.online.usage import usage as redis_usage
    from feature_pipeline.resources import redis_client, store
    from feature_pipeline.stack import Stack, foreground
    from feature_pipeline.storage import retention, usage

    with foreground.until_told(), Stack(settings()) as stack:
        current = stack.resolved_settings()
        held = store(current, reading=True)
        with held.database:
            found: dict[str, Any] = {
                "assets": usage.partitions(held.database).to_dicts(),
                "tables": usage.relations(held.database, ALL_TABLES).to_dicts(),
                "timescaledb": retention.timescaledb(held.database),
                "policies": retention.policies(held.database).to_dicts(),
                "dagster": {"total": usage.schema_size(stack.dagster_database_url)},
            }
        try:
            with redis_client(current) as client:
                found["redis"] = asdict(redis_usage(client))
        except FeaturePipelineError as error:
            found["redis"] = {"error": str(error)}
    if as_json:
        print_json(found)
    else:
        _print_storage(found)


def _print_storage(found: dict[str, Any]) -> None:
    from feature_pipeline.cli.terminal import age, grid, size

    out = console()
    if found["assets"]:
        out.print(grid(found["assets"]))
    else:
        out.print("no day is written yet: feature-pipeline demo, or backfill")
    out.print()
    sizes = ("heap", "indexes", "toast", "total")
    out.print(
        grid(
            [
                {"table": row["table"], "kind": row["kind"]}
                | {"rows": "" if row["rows"] is None else row["rows"]}
                | {name: size(row[name]) for name in sizes}
                for row in found["tables"]
            ]
        )
    )
    out.print()
    _print_policies(found)
    total = sum(row["total"] for row in found["tables"])
    dagster = found["dagster"]["total"]
    out.print()
    out.print(f"tables   {size(total)}")
    out.print(f"Dagster  {'cannot be asked' if dagster is None else size(dagster)}")
    redis = found["redis"]
    if "error" in redis:
        out.print(f"Redis    {redis['error']}", soft_wrap=True)
        return
    counts = ", ".join(f"{count} {kind}" for kind, count in redis["keys"].items())
    limit = f" of {size(redis['limit'])}" if redis["limit"] else ""
    out.print(
        f"Redis    {size(redis['memory'])}{limit}, at most {size(redis['peak'])}: {counts}"
        f", {redis['others']} keys of others",
        soft_wrap=True,
    )
    if not redis["complete"]:
        out.print("         not everything is published: feature-pipeline online rebuild")
    out.print(f"         Redis {redis['version']}, up for {age(redis['uptime'])}")


def _print_policies(found: dict[str, Any]) -> None:
    from feature_pipeline.cli.terminal import grid

    out, rows = console(), []
    shares = ("compressed", "saved")
    for row in found["policies"]:
        said = {n: "" if row[n] is None else f"{row[n]:.0%}" for n in shares}
        kept = {"retention": row["retention"] or "kept"}
        rows.append(row | said | {"compress_after": row["compress_after"] or "never"} | kept)
    if not found["timescaledb"]:
        out.print("plain PostgreSQL keeps all of it, in one piece; on TimescaleDB would apply")
        absent = ("chunks", *shares, "next_run")
        rows = [{n: v for n, v in row.items() if n not in absent} for row in rows]
    out.print(grid([{n.replace("_", " "): v for n, v in row.items()} for row in rows]))


# -- logs -----------------------------------------------------------------------------------------


def logs(
    name: Annotated[
        str,
        typer.Argument(
            help="A log, or the id of a run (or its beginning, as the UI shows it).",
            autocompletion=complete.logs,
            metavar="NAME",
            show_default=False,
        ),
    ] = "",
    lines: Annotated[
        int, typer.Option("-n", "--lines", min=0, help="How many, from the end.")
    ] = 50,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as it is written, until Ctrl-C.")
    ] = False,
    as_json: Json = False,
) -> None:
    """The stack's logs; the end of one; or what happened in a Dagster run, in words.

    \b
    Examples:
      feature-pipeline logs
      feature-pipeline logs dagster-daemon -n 20 --follow
      feature-pipeline logs 3f2a91c0
    """
    from dataclasses import asdict

    from feature_pipeline.stack import logs as room

    current = settings()
    found = room.logs(current.home)
    names = {log.name for log in found}
    if not name:
        _list_logs([asdict(log) for log in found], as_json=as_json)
    elif name.removesuffix(".log") not in names and room.looks_like_a_run(name):
        _run_story(name, lines, follow=follow, as_json=as_json)
    elif as_json:
        if follow:
            raise typer.BadParameter("--json ends with what is there: leave out --follow")
        print_json(room.tail(room.find(current.home, name).path, lines))
    else:
        log = room.find(current.home, name)
        said = room.follow(log.path, lines) if follow else room.tail(log.path, lines)
        for line in said:
            typer.echo(line)


def _list_logs(found: list[dict[str, Any]], *, as_json: bool) -> None:
    from feature_pipeline.cli.terminal import grid, size

    if as_json:
        print_json([log | {"path": str(log["path"])} for log in found])
    elif found:
        console().print(grid([log | {"size": size(log["size"])} for log in found]))
    else:
        console().print("there are no logs yet: feature-pipeline up, or demo")


def _run_story(run_id: str, lines: int, *, follow: bool, as_json: bool) -> None:
    import os
    from dataclasses import asdict

    from rich.markup import escape

    from feature_pipeline.stack import Stack, foreground

    if follow:
        raise typer.BadParameter("--follow is for log files; the UI shows a run as it goes")
    with foreground.until_told(), Stack(settings()) as stack:
        stack.prepare_dagster()
        os.environ.update(stack.environment())  # where Dagster looks for its instance

        import dagster as dg

        from feature_pipeline.stack.run_events import story

        with dg.DagsterInstance.get() as instance:
            told = story(instance, run_id)
    events = told.events[-lines:] if lines else []
    if as_json:
        print_json(asdict(told) | {"events": [asdict(event) for event in events]})
        return
    out = console()
    out.print(f"run {told.run_id}, job {told.job}: [bold]{told.status}[/]")
    styles = {"error": "red", "warning": "yellow"}
    for event in events:
        step = f" {event.step}" if event.step else ""
        text = f"{event.at:%Y-%m-%d %H:%M:%S}{step}: {event.text}"
        out.print(escape(text), style=styles.get(event.level), soft_wrap=True)
    if len(told.events) > len(events):
        out.print(f"the last {len(events)} of {len(told.events)}; -n shows more")
