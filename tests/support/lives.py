"""Lives of a monitor that kills itself with -9: real engine, delivery and notifiers over a real store, in forked processes.

``python -m tests.support.lives PLACE`` reads seeds, one a line, and answers each with one line of JSON: what happened in that trial.
The process is warm and has one thread, so a life costs a fork rather than a start.
"""

import asyncio
import ctypes
import gc
import json
import logging
import mmap
import os
import random
import shutil
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, and_, create_engine, event, or_, select, text
from sqlalchemy.pool import Pool

from alerts import BUILTINS
from alerts.pagerduty import PagerDutyConfig
from alerts.silences import make
from alerts.webhook import WebhookConfig
from monitor.config.settings import Channel, CheckInstance, Settings
from monitor.delivery import Delivery
from monitor.domain import EscalationStep, Notification, Observed, Receipt, ResponsePolicy, Severity
from monitor.engine import Engine as Deciding
from monitor.engine import acknowledge
from monitor.plugins import CheckContext, NotifyContext, PluginConfig
from monitor.runner import Runner
from monitor.store import Store, StoreThread
from monitor.store.claims import IS_PENDING, is_blocked
from monitor.store.schema import incidents, metadata, outbox
from tests.support.life_script import SERVICES, Step, severity_at, write_script
from tests.support.looking import with_parts
from tests.support.world import DOWN, instance, settings

NOTIFIERS = {plugin.name: plugin for plugin in BUILTINS}
HOOK_TOKEN, HOOK_SECRET, PAGER_KEY = "hook-token", "hook-secret", "0" * 32
T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LIFE_DEADLINE_S = 60.0
MOST_LIVES = 40
WARM_UP = 1_000_000
"""The seed of the life that is lived once before all trials."""
POINTS = ("commit", "committed", "sending", "accepted")
"""Before and after the commit of a transaction that changed something; before a send, and after it while nobody has recorded it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where trials happen: ``state`` is a URL, ``folder`` takes files; ``pager`` and ``hook`` are the far ends of the two channels."""

    folder: str
    state: str
    pager: str
    hook: str
    ca_file: str
    replicas: int = 1


class Shared(ctypes.Structure):
    """What outlives every life of a trial: the time, how far the script is, and at which point of which kind each replica dies."""

    _fields_ = (
        ("elapsed_s", ctypes.c_double),
        ("step", ctypes.c_int64),
        ("over", ctypes.c_int64),
        ("countdown", ctypes.c_int64 * 2),
        ("kind", ctypes.c_int64 * 2),
    )


class SharedClock:
    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def now(self) -> datetime:
        return T0 + timedelta(seconds=self._shared.elapsed_s)

    def monotonic(self) -> float:
        return 1000.0 + self._shared.elapsed_s


class Life:
    """One process's worth of monitor. ``role`` 0 sees the script through; 1 is a replica that delivers and escalates beside it."""

    def __init__(self, place: Place, seed: int, role: int, shared: Shared, log: int) -> None:
        self._shared, self._role, self._log = shared, role, log
        self._script = write_script(random.Random(seed))
        self._clock = clock = SharedClock(shared)
        self._names = {service: f"{service}{seed}" for service in SERVICES}
        self._instances = {service: self._instance(service) for service in SERVICES}
        chosen = self._settings(place)
        self._store = Store(chosen.state_url)
        self._reader = create_engine(chosen.state_url)
        self._thread = StoreThread()
        self._delivery = Delivery(chosen, store=self._store, thread=self._thread, clock=clock, on_outcome=lambda *_: None)
        self._engine = Deciding(
            chosen,
            store=self._store,
            thread=self._thread,
            runner=Runner(clock, lambda found, _: with_parts(found.service, clock=clock)),
            clock=clock,
            guides={},
            on_result=lambda _: None,
            wake_delivery=self._delivery.wake,
        )

    async def live(self) -> None:
        await self._engine.start()
        serving = asyncio.create_task(self._delivery.serve())
        try:
            async with asyncio.timeout(LIFE_DEADLINE_S):
                await (self._see_it_through() if self._role == 0 else self._stand_by())
        finally:
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving

    def close(self) -> None:
        self._thread.close()
        self._reader.dispose()
        self._store.close()

    async def _see_it_through(self) -> None:
        while self._shared.step < len(self._script):
            step = self._script[self._shared.step]
            await self._do(step)
            if step.settle or step.what in {"take", "silence", "wait"}:
                await self._engine.round()
            if step.settle:
                await self._calm()
            self._shared.step += 1
        for _ in range(100):
            await self._wait(60)
            await self._engine.round()
            await self._calm()
            if not await self._thread(self._store.outbox.undelivered):
                return
        raise AssertionError(f"never delivered: {await self._thread(self._store.outbox.undelivered)}")

    async def _stand_by(self) -> None:
        while not self._shared.over:
            await self._engine.round()
            self._delivery.wake()
            await asyncio.sleep(0.1)

    async def _do(self, step: Step) -> None:
        match step.what:
            case "look":
                self._shared.elapsed_s += 1
                await self._engine.run(self._instances[step.service])
            case "take":
                for incident in await self._thread(self._store.incidents.list, unresolved=True):
                    if incident.service == self._names[step.service]:
                        await self._thread(acknowledge, self._store, incident.id, "ada", self._clock)
                self._delivery.wake()
            case "silence":
                now = self._clock.now()
                matcher = f"service={self._names[step.service]}"
                silence = make([matcher], now, now + timedelta(seconds=step.seconds), "ada", "known", now)
                await self._thread(self._store.silences.save, silence)
            case "wait":
                await self._wait(step.seconds)

    async def _wait(self, seconds: float) -> None:
        """Let time pass when nothing is being sent: a lease must not end in the middle of a send that takes no time."""
        await self._calm()
        self._shared.elapsed_s += seconds
        self._delivery.wake()

    async def _calm(self) -> None:
        """Wait until everything that is due has been tried and recorded, by whichever replica."""
        while not await self._thread(self._is_calm):
            await asyncio.sleep(0.01)

    def _is_calm(self) -> bool:
        """By one question: between two, a row may pass from one replica to the other."""
        due = and_(outbox.c.next_attempt_at <= self._clock.now(), ~is_blocked())
        query = select(outbox.c.id).where(IS_PENDING, or_(outbox.c.lease_owner.is_not(None), due)).limit(1)
        with self._reader.connect() as connection:
            return connection.execute(query).first() is None

    # --- the parts ---------------------------------------------------------------------------------------------------

    def _instance(self, service: str) -> CheckInstance:
        async def look(_: CheckContext) -> Observed:
            severity = severity_at(self._script[: self._shared.step], service)
            return Observed(findings=(DOWN("it does not answer", severity=severity),)) if severity else Observed()

        return instance(look, service=self._names[service])

    def _settings(self, place: Place) -> Settings:
        chosen = settings(Path(place.folder), *self._instances.values())
        secret = {name: SecretStr(value) for name, value in (("routing_key", PAGER_KEY), ("bearer", HOOK_TOKEN), ("secret", HOOK_SECRET))}
        key = secret.pop("routing_key")
        pager = self._channel("pager", "pagerduty", PagerDutyConfig(routing_key=key, base_url=place.pager, ca_file=place.ca_file))
        hook = self._channel("hook", "webhook", WebhookConfig(url=f"{place.hook}/hook", ca_file=place.ca_file, **secret))
        both = (EscalationStep(0, "both", ("pager", "hook")), EscalationStep(900, "lead", ("hook",)))
        late = (EscalationStep(0, "on-call", ("pager",)), EscalationStep(900, "lead", ("hook",)))
        response = ResponsePolicy(within_s=600, ack_expires_s=3600, remind_s=1800)
        return replace(
            chosen,
            state_url=place.state,
            channels={"pager": pager, "hook": hook},
            escalation={severity: both if severity is Severity.P1 else late for severity in Severity},
            responses=dict.fromkeys(Severity, response),
        )

    def _channel(self, name: str, notifier: str, config: PluginConfig) -> Channel:
        plugin = NOTIFIERS[notifier]

        async def send(ctx: NotifyContext, cfg: Any, notification: Notification) -> Receipt:
            self._point("sending")
            receipt = await plugin.send(ctx, cfg, notification)
            os.write(self._log, f"{os.getpid()} {notification.id} {name}\n".encode())
            self._point("accepted")
            return receipt

        return Channel(name, replace(plugin, send=send, per_minute=None), config)

    # --- the points at which it may die ------------------------------------------------------------------------------

    def _point(self, kind: str) -> None:
        if POINTS[self._shared.kind[self._role]] != kind:
            return
        self._shared.countdown[self._role] -= 1
        if self._shared.countdown[self._role] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch_commits(self) -> None:
        """The store's one thread runs its transactions one after the other."""
        changed, written = False, False

        @event.listens_for(Engine, "begin")
        def _begin(_: Connection) -> None:
            nonlocal changed
            changed = False

        @event.listens_for(Engine, "after_cursor_execute")
        def _executed(*what: Any) -> None:
            nonlocal changed
            changed = changed or what[2].startswith(("INSERT", "UPDATE", "DELETE"))

        @event.listens_for(Engine, "commit")
        def _commit(_: Connection) -> None:
            nonlocal written
            written = changed
            if changed:
                self._point("commit")

        @event.listens_for(Pool, "checkin")
        def _checkin(*_: object) -> None:
            nonlocal written
            if written:
                written = False
                self._point("committed")


# --- trials --------------------------------------------------------------------------------------------------------------


def trial(place: Place, seed: int) -> dict[str, Any]:
    """See one script through, however often the monitor dies. Returns the facts."""
    rng = random.Random(f"deaths {seed}")
    shared = Shared.from_buffer(mmap.mmap(-1, ctypes.sizeof(Shared)))
    deaths = [[(rng.randrange(len(POINTS)), rng.randint(1, 6)) for _ in range(rng.randint(2, 4))] for _ in range(place.replicas)]
    sends = Path(place.folder) / f"sends-{seed}"
    log = os.open(sends, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
    died: list[tuple[int, str]] = []
    living: dict[int, int] = {}

    def begin(role: int) -> None:
        shared.kind[role], shared.countdown[role] = deaths[role].pop(0) if deaths[role] else (0, 0)
        pid = os.fork()
        if pid == 0:
            _live(place, seed, role, shared, log, len(died))
        living[pid] = role

    _empty(place)
    for role in range(place.replicas):
        begin(role)
    while living:
        pid, status = os.waitpid(-1, 0)
        role = living.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        if code == -signal.SIGKILL and len(died) < MOST_LIVES:
            died.append((pid, POINTS[shared.kind[role]]))
            begin(role)
        elif code != 0:
            raise AssertionError(f"a life ended with {code}; its error is in the log")
        elif role == 0:
            shared.over = 1
    os.close(log)
    lines = [line.split() for line in sends.read_text().splitlines()]
    sends.unlink()
    return {"seed": seed, "died": died, "sends": [(int(pid), int(row), name) for pid, row, name in lines], **_facts(place)}


def _live(place: Place, seed: int, role: int, shared: Shared, log: int, number: int) -> None:
    code = 1
    try:
        random.seed(f"{seed} {number}")
        gc.disable()
        life = Life(place, seed, role, shared, log)
        life.watch_commits()
        asyncio.run(life.live())
        code = 0
    except Exception:  # noqa: BLE001 - a forked process must not go on as its parent
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _warm_up(place: Place) -> None:
    """Live once without dying: what is imported and compiled then is there in every fork. No thread of it is left."""
    compiled: dict[Any, Any] = {}

    @event.listens_for(Engine, "engine_connect")
    def _share(connection: Connection) -> None:
        connection.execution_options(compiled_cache=compiled)

    _empty(place)
    life = Life(place, WARM_UP, 0, Shared(), os.open(os.devnull, os.O_WRONLY))
    asyncio.run(life.live())
    life.close()
    gc.collect()
    gc.freeze()


def _empty(place: Place) -> None:
    """A state with a schema and nothing in it."""
    if place.state.startswith("sqlite"):
        for path in Path(place.folder).glob("trial.db*"):
            path.unlink()
        shutil.copy(Path(place.folder) / "template.db", Path(place.folder) / "trial.db")
        return
    engine = create_engine(place.state)
    with engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {', '.join(metadata.tables)} RESTART IDENTITY"))
    engine.dispose()


def _facts(place: Place) -> dict[str, Any]:
    engine = create_engine(place.state)
    columns = (outbox.c.id, outbox.c.incident_id, outbox.c.channel, outbox.c.transition, outbox.c.state)
    with engine.connect() as connection:
        opened = connection.execute(select(incidents.c.id, incidents.c.service, incidents.c.state, incidents.c.told)).mappings().all()
        rows = connection.execute(select(*columns).order_by(outbox.c.id)).mappings().all()
    engine.dispose()
    return {"incidents": [dict(row) for row in opened], "rows": [dict(row) for row in rows]}


def main() -> None:
    place = Place(**json.loads(sys.argv[1]))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    first = replace(place, state=f"sqlite:///{place.folder}/template.db") if place.state.startswith("sqlite") else place
    Store(first.state).close()
    _warm_up(place)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(trial(place, int(line))) + "\n")
        sys.stdout.flush()


def command(place: Place) -> tuple[str, ...]:
    """How to start the warm process."""
    return sys.executable, "-m", "tests.support.lives", json.dumps(asdict(place))


if __name__ == "__main__":
    main()
