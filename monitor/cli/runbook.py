"""``monitor runbook``: diagnose an incident, plan a fix, look at it, apply exactly what was shown."""

import asyncio
import difflib
import shlex
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TypeVar

import psycopg
import typer
from pydantic import ValidationError
from rich.markup import escape
from rich.padding import Padding

from monitor.cli.opening import (
    DEFAULT_CONFIG,
    EXIT_UNKNOWN,
    EXIT_WARNING,
    ConfigOption,
    JsonOption,
    err,
    open_settings,
    open_store,
    out,
    print_json,
    say_error,
    whoami,
)
from monitor.clock import SystemClock
from monitor.config.settings import Settings
from monitor.domain import Plan, TimelineEntry
from monitor.errors import Refused, UsageError
from monitor.plugins import AnyOperation, PluginConfig, RunbookContext, Service
from monitor.probes.outside import Outside
from monitor.store import Store
from runbook import executor, render
from runbook.outcomes import Applied, StepOutcome, StepStatus

T = TypeVar("T")
CONNECT_TIMEOUT_S = 5

ServiceOption = Annotated[str | None, typer.Option("--service", "-s", help="The database to work on; needed when there are several.")]
ParamsOption = Annotated[
    list[str] | None, typer.Option("--param", "-p", help="A parameter of the operation, as name=value. May be given several times.")
]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="The runbook: diagnosis, and fixes that are planned, shown, guarded and audited.", no_args_is_help=True)
    app.add_typer(group, name="runbook")
    _register_looking(group)
    _register_changing(group)
    _register_audit(group)


def _register_looking(group: typer.Typer) -> None:
    @group.command("list")
    def list_(config: ConfigOption = DEFAULT_CONFIG) -> None:
        """List incidents, their first steps, and the operations that may fix them."""
        _, registry = open_settings(config)
        for code, entry in sorted(registry.runbook.items()):
            out.print(f"[bold]{escape(code)}[/] {escape(entry.guide.title)}")
            out.print(Padding(escape(entry.guide.first_step), (0, 0, 0, 4)))
            for operation in entry.operations:
                out.print(f"    [green]{escape(operation.name)}[/]  monitor runbook plan {escape(operation.name)}", soft_wrap=True)

    @group.command("diagnose")
    def diagnose(
        code: Annotated[str, typer.Argument(help="The incident's code, such as INC-003.")],
        service: ServiceOption = None,
        config: ConfigOption = DEFAULT_CONFIG,
        as_json: JsonOption = False,
    ) -> None:
        """Look at everything the runbook says to look at, and say what it means. Changes nothing."""
        settings, registry = open_settings(config)
        entry = registry.runbook.get(_nearest(code.upper(), registry.runbook, "incident"))
        assert entry is not None
        if entry.diagnose is None:
            raise UsageError(f"{entry.guide.code} has no automatic diagnosis. First step: {entry.guide.first_step}")
        with err.status(f"diagnosing {entry.guide.code}"):
            diagnosis = _with_context(settings, _database(settings, service), entry.diagnose)
        if as_json:
            print_json(asdict(diagnosis))
        else:
            out.print(render.diagnosis(diagnosis), markup=False, soft_wrap=True)
        if diagnosis.blind:
            raise typer.Exit(EXIT_UNKNOWN)


def _register_audit(group: typer.Typer) -> None:
    @group.command("audit")
    def audit(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
        """Who changed what, when and why: the intent before each run and its outcome after."""
        store = open_store(config)
        try:
            entries = store.journal.newest()
        finally:
            store.close()
        if as_json:
            print_json([asdict(entry) for entry in entries])
            return
        for entry in entries:
            when = f"[dim]{entry.at:%Y-%m-%d %H:%M:%S}Z[/] [bold]{escape(entry.phase)}[/]"
            out.print(f"{when} {escape(entry.plan)} by {escape(entry.who)}: {escape(entry.why)}", soft_wrap=True)
        if not entries:
            out.print("nothing was ever applied")


def _register_changing(group: typer.Typer) -> None:
    @group.command("plan")
    def plan(
        operation: Annotated[str, typer.Argument(help="The operation, such as cancel-stuck-jobs.")],
        params: ParamsOption = None,
        service: ServiceOption = None,
        config: ConfigOption = DEFAULT_CONFIG,
        as_json: JsonOption = False,
    ) -> None:
        """Show what an operation would do, and try it in a transaction that is rolled back."""
        settings, registry = open_settings(config)
        chosen = registry.operations[_nearest(operation, registry.operations, "operation")]
        database = _database(settings, service)
        values = _params(chosen, params or [])
        with err.status("planning"):
            made = _with_context(settings, database, lambda ctx: executor.prepare(chosen, ctx, values))
        tried = asyncio.run(_dry_run(made, database)) if database.fix_dsn is not None and made.steps else ()
        if as_json:
            print_json({**asdict(made), "dry_run": [_outcome(outcome) for outcome in tried]})
        else:
            _show(made, tried, database, _again(operation, params, service, config))
        if any(outcome.status is StepStatus.FAILED for outcome in tried):
            raise typer.Exit(EXIT_WARNING)

    @group.command("apply")
    def apply(
        operation: Annotated[str, typer.Argument(help="The operation, such as cancel-stuck-jobs.")],
        why: Annotated[str, typer.Option(help="Why: the incident's id, or a sentence. Goes into the audit.")],
        who: Annotated[str | None, typer.Option(help="Who; your account's name when not given.")] = None,
        digest: Annotated[str | None, typer.Option("--plan", help="Digest of the plan you were shown; asked for on a terminal.")] = None,
        params: ParamsOption = None,
        service: ServiceOption = None,
        config: ConfigOption = DEFAULT_CONFIG,
    ) -> None:
        """Carry out exactly the plan that was shown. Refused when anything changed since; verified and audited."""
        settings, registry = open_settings(config)
        chosen = registry.operations[_nearest(operation, registry.operations, "operation")]
        database = _database(settings, service)
        values = _params(chosen, params or [])
        if digest is None:
            made = _with_context(settings, database, lambda ctx: executor.prepare(chosen, ctx, values))
            digest = _ask(made, database, _again(operation, params, service, config))
        try:
            applied = asyncio.run(_apply(settings, database, chosen, values, digest, who or whoami(), why))
        except Refused as exc:
            say_error(f"refused: {exc}")
            raise typer.Exit(EXIT_WARNING) from exc
        out.print(render.applied(applied), markup=False, soft_wrap=True)
        code = next(code for code, entry in registry.runbook.items() if chosen in entry.operations)
        _note_on_incidents(settings, code, f"runbook {operation}, for {why!r}: {applied.verification}", who or whoami())
        if not applied.ok:
            raise typer.Exit(EXIT_WARNING)


def _note_on_incidents(settings: Settings, code: str, text: str, who: str) -> None:
    """Let the open incidents of this code tell what was done about them."""
    store, now = Store(settings.state_url), SystemClock().now()
    try:
        touched = [incident for incident in store.incidents.list(unresolved=True) if incident.code == code]
        if touched:
            store.incidents.add_timeline([TimelineEntry(incident.id, now, "note", text, who) for incident in touched])
    finally:
        store.close()


def _ask(made: Plan, database: Service, again: str) -> str:
    """Show the plan and ask on the terminal; without one, say how to confirm. Raises ``Refused``."""
    _show(made, asyncio.run(_dry_run(made, database)) if made.steps else (), database, again)
    if not made.steps:
        return made.digest
    if not sys.stdin.isatty():
        raise UsageError(f"nobody to ask: look at the plan above, then give --plan {made.digest[:12]}")
    if not typer.confirm("Apply exactly this?", default=False):
        raise typer.Abort
    return made.digest


async def _apply(
    settings: Settings, database: Service, operation: AnyOperation, values: PluginConfig, digest: str, who: str, why: str
) -> Applied:
    clock = SystemClock()
    outside = Outside(clock)
    store = Store(settings.state_url)
    try:
        connection = await _fix_connection(database)
        async with connection:
            ctx = outside.runbook_context(database, settings.services, _check_configs(settings, database))
            whole = await _whole_digest(operation, ctx, values, digest)
            return await executor.apply(
                operation, ctx, values, shown_digest=whole, who=who, why=why, connection=connection, journal=store.journal
            )
    finally:
        store.close()
        await outside.close()


async def _whole_digest(operation: AnyOperation, ctx: RunbookContext, values: PluginConfig, digest: str) -> str:
    """A digest may be given by its first twelve characters or more: what ``plan`` prints."""
    if len(digest) < 12:
        raise UsageError("--plan takes at least the first twelve characters of the plan's digest")
    now = (await executor.prepare(operation, ctx, values)).digest
    return now if now.startswith(digest) else digest


async def _dry_run(made: Plan, database: Service) -> tuple[StepOutcome, ...]:
    connection = await _fix_connection(database)
    async with connection:
        return await executor.dry_run(made, connection)


async def _fix_connection(database: Service) -> psycopg.AsyncConnection:
    """The connection that may change things. Raises ``Refused``: nothing is ever changed through the monitor's own role."""
    if database.fix_dsn is None:
        raise Refused(f"services.{database.name}.fix_dsn is not configured: without it nothing can be changed")
    try:
        return await psycopg.AsyncConnection.connect(
            database.fix_dsn.get_secret_value(), connect_timeout=CONNECT_TIMEOUT_S, application_name="monitor-fix"
        )
    except psycopg.Error as exc:
        reason = " ".join(str(exc).split())
        raise Refused(f"services.{database.name}.fix_dsn cannot be used: {reason}") from exc


def _with_context(settings: Settings, database: Service, work: Callable[[RunbookContext], Awaitable[T]]) -> T:
    async def look() -> T:
        outside = Outside(SystemClock())
        try:
            return await work(outside.runbook_context(database, settings.services, _check_configs(settings, database)))
        finally:
            await outside.close()

    return asyncio.run(look())


def _check_configs(settings: Settings, database: Service) -> dict[str, PluginConfig]:
    return {instance.check.name: instance.config for instance in settings.instances if instance.service.name == database.name}


def _database(settings: Settings, name: str | None) -> Service:
    databases = {service.name: service for service in settings.services.values() if service.dsn is not None}
    if name is not None:
        return databases[_nearest(name, databases, "database")]
    if len(databases) != 1:
        raise UsageError(f"say which database with --service: {', '.join(databases) or 'no service has a dsn'}")
    return next(iter(databases.values()))


def _nearest(name: str, valid: Mapping[str, object], kind: str) -> str:
    """``name`` when it exists. Raises ``UsageError`` with the nearest one that does."""
    if name in valid:
        return name
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.9)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(valid))}"
    raise UsageError(f"no {kind} {name!r}: {hint}")


def _params(operation: AnyOperation, given: list[str]) -> PluginConfig:
    pairs = {name: value for name, _, value in (item.partition("=") for item in given)}
    fields = operation.params.model_fields
    for name in pairs:
        _nearest(name, fields, f"parameter of {operation.name}")
    try:
        made: PluginConfig = operation.params.model_validate(pairs)
    except ValidationError as exc:
        first = exc.errors(include_input=False, include_url=False)[0]
        said = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"parameter {'.'.join(str(part) for part in first['loc'])!r} of {operation.name}: {said}") from exc
    return made


def _show(made: Plan, tried: tuple[StepOutcome, ...], database: Service, again: str) -> None:
    out.print(render.plan(made), markup=False, soft_wrap=True)
    if tried:
        out.print(render.outcomes(tried), markup=False, soft_wrap=True)
    if made.steps and database.fix_dsn is None:
        out.print(f"No dry run, and nothing can be applied: services.{database.name}.fix_dsn is not configured.", soft_wrap=True)
    elif made.steps:
        command = f"{again} --plan {made.digest[:12]} --why '…'"
        out.print(f"To apply exactly this: {command}", markup=False, soft_wrap=True)


def _again(operation: str, params: list[str] | None, service: str | None, config: Path) -> str:
    """The command that applies what these arguments plan, quoted for a shell."""
    given = [part for param in params or [] for part in ("--param", param)]
    named = ["--service", service] if service else []
    return shlex.join(["monitor", "runbook", "apply", operation, *given, *named, "--config", str(config)])


def _outcome(outcome: StepOutcome) -> dict[str, object]:
    return {"step": outcome.step.title, "status": outcome.status.value, "detail": outcome.detail, "rows": outcome.rows}
