"""The running program: wires the parts, serves until told to stop, reloads its configuration without dropping anything."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator
from importlib.metadata import version as installed_version

import structlog
import uvicorn

from monitor import config
from monitor.alerting import Alerting
from monitor.api import Answers, create_api, create_protocol
from monitor.clock import Clock, SystemClock
from monitor.config.settings import CheckInstance, Settings
from monitor.deadman import DeadMan
from monitor.delivery import Delivery
from monitor.emergency import Emergency
from monitor.engine import Engine
from monitor.errors import ConfigError, MonitorError, Problem, StoreError
from monitor.heartbeats import HeartbeatBook
from monitor.intake import Intake
from monitor.memory import Memory
from monitor.metrics import names
from monitor.metrics.exposition import Exposition
from monitor.plugins import CheckContext, Kept
from monitor.probes.outside import Outside
from monitor.process import tune_process
from monitor.registry import Registry
from monitor.reports import Reports
from monitor.runner import Runner
from monitor.scheduler import Scheduler
from monitor.selfwatch import SelfWatch
from monitor.store import Store, StoreThread
from monitor.upkeep import UpkeepLoop
from monitor.views import Views

PULSE_S = 1.0
STATE_SILENT_S = 30.0
"""So long without a finished round of escalation, the monitor is not ready."""
VERSION = installed_version("platform-monitor")

log = structlog.get_logger("monitor")


class ListenError(MonitorError):
    """The address to listen on cannot be had."""


class App:
    """One monitor. ``serve()`` runs until ``stop()``, SIGINT or SIGTERM; SIGHUP reloads. Raises ``ListenError``, ``StoreError``."""

    def __init__(self, settings: Settings, registry: Registry, clock: Clock | None = None) -> None:
        self._settings = settings
        self._registry = registry
        self._clock = clock = clock or SystemClock()
        self._stop = asyncio.Event()
        self._socket = listen(settings.listen_host, settings.listen_port)
        self._store = store = Store(settings.state_url)
        self._thread = thread = StoreThread()
        memory = Memory()
        self._exposition = Exposition(VERSION)
        self._scheduler = Scheduler(clock, self._run_check)
        self._heartbeats = HeartbeatBook(store, thread, clock, self._scheduler.look_soon)
        self._outside = Outside(clock, self._heartbeats)
        self._delivery = Delivery(settings, store=store, thread=thread, clock=clock, on_outcome=self._count_attempt)
        self._engine = Engine(
            settings,
            store=store,
            thread=thread,
            runner=Runner(clock, self._context, memory),
            memory=memory,
            clock=clock,
            guides=registry.guides,
            on_result=self._exposition.record,
            wake_delivery=self._delivery.wake,
            look_soon=self._scheduler.look_soon,
        )
        self._reports = Reports(settings, store=store, thread=thread, clock=clock, latest=lambda: self._engine.latest)
        self._intake = Intake(self._engine, store=store, thread=thread, clock=clock, guides=registry.guides)
        self._engine.each_round = SelfWatch(self._engine, store=store, thread=thread, clock=clock).look
        self._emergency = Emergency(self._engine, self._state_trouble, clock)
        self._engine.each_result = self._emergency.see
        self._reading = StoreThread()
        self._alerting = Alerting(
            self._engine, self._intake, store=store, thread=thread, reading=self._reading, clock=clock, version=VERSION
        )
        self._views = Views(self._engine, store=store, thread=thread, clock=clock, version=VERSION)
        self._upkeep = UpkeepLoop(self._engine, store=store, thread=thread, clock=clock, show=self._exposition)
        self._deadman = DeadMan(lambda: self._settings, self._unready, store=store, thread=thread, clock=clock, show=self._exposition)
        self._last_pulse = clock.monotonic()
        self._shown: set[str] = set()
        self._reloading = asyncio.Lock()

    @property
    def port(self) -> int:
        """The port listened on: the configured one, or what the system gave for port 0."""
        return int(self._socket.getsockname()[1])

    def stop(self) -> None:
        """End ``serve()``, cleanly."""
        self._stop.set()

    async def serve(self) -> None:
        """Run every loop until stopped. A loop that dies ends the program: half a monitor is worse than one that is restarted."""
        server = _Server(self._api_config())
        tune_process()
        try:
            await self._engine.start()
            await self._adopt(self._settings)
            with self._signals():
                log.info("started", address=f"http://{self._settings.listen_host}:{self.port}", checks=len(self._settings.instances))
                async with asyncio.TaskGroup() as group:
                    loops = (
                        self._scheduler,
                        self._engine,
                        self._intake,
                        self._delivery,
                        self._reports,
                        self._deadman,
                        self._upkeep,
                        self._emergency,
                    )
                    tasks = [group.create_task(part.serve(), name=type(part).__name__) for part in loops]
                    tasks += [group.create_task(self._pulse(), name="pulse"), group.create_task(self._refresh_gauges(), name="gauges")]
                    http = group.create_task(server.serve(sockets=[self._socket]), name="http")
                    await self._stop.wait()
                    server.should_exit = True
                    await http
                    for task in tasks:
                        task.cancel()
        finally:
            await self._close()
        log.info("stopped")

    async def reload(self) -> None:
        """Read the configuration again and go by it; on any error the old one stays in use. Raises ``ConfigError``."""
        async with self._reloading:
            await self._reload()

    async def _reload(self) -> None:
        try:
            fresh = config.load(self._settings.source, checks=self._registry.checks, notifiers=self._registry.notifiers)
            _refuse_what_needs_a_restart(self._settings, fresh)
        except ConfigError as exc:
            self._exposition.set(names.CONFIG_RELOAD_SUCCESSFUL, 0)
            log.error("configuration not reloaded, the old one stays in use", problems=[str(problem) for problem in exc.problems])
            raise
        self._settings = fresh
        self._delivery.settings = fresh
        self._engine.reconfigure(fresh)
        self._reports.reconfigure(fresh)
        await self._adopt(fresh)
        log.info("configuration reloaded", checks=len(fresh.instances))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _context(self, instance: CheckInstance, kept: Kept | None) -> CheckContext:
        return self._outside.check_context(instance.service, name=instance.name, kept=kept, timeout_s=instance.timeout_s)

    async def _run_check(self, instance: CheckInstance) -> float | None:
        return await self._engine.run(instance)

    def _count_attempt(self, channel: str, outcome: str) -> None:
        self._exposition.add(names.NOTIFICATIONS, channel=channel, outcome=outcome)
        self._upkeep.heard(channel, outcome)

    async def _adopt(self, settings: Settings) -> None:
        """Point probes, metrics and schedule at these settings."""
        await self._outside.adopt(settings.services)
        await self._heartbeats.adopt(settings.instances)
        keys = {instance.key for instance in settings.instances}
        for gone in self._shown - keys:
            self._exposition.forget(gone)
        self._shown = keys
        for metric in (names.OWN_STATEMENTS, names.OWN_BUSY, names.OWN_CONNECTS):
            self._exposition.clear(metric)
        self._exposition.seed_channels(settings.channels)
        self._exposition.set(names.CONFIG_RELOAD_SUCCESSFUL, 1)
        self._exposition.set(names.CONFIG_RELOAD_SUCCESS_TIME, self._clock.now().timestamp())
        self._scheduler.replace(settings.instances)

    async def _pulse(self) -> None:
        """Once a second: how late the loop is. Waits for nothing else, so that nothing else can look like a late loop."""
        while True:
            before = self._clock.monotonic()
            await asyncio.sleep(PULSE_S)
            self._last_pulse = self._clock.monotonic()
            self._exposition.set(names.LOOP_LAG, max(0.0, self._last_pulse - before - PULSE_S))

    async def _refresh_gauges(self) -> None:
        """Once a second: how the scheduler, the store, the incidents and the outbox stand."""
        show = self._exposition
        while True:
            show.set(names.SCHEDULER_LATE, self._scheduler.stats.late_s)
            show.set(names.SCHEDULER_SKIPPED, self._scheduler.stats.skipped)
            for service, cost in self._outside.postgres_costs().items():
                show.set(names.OWN_STATEMENTS, cost.statements, service=service)
                show.set(names.OWN_BUSY, cost.busy_s, service=service)
                show.set(names.OWN_CONNECTS, cost.connects, service=service, kind="held")
                show.set(names.OWN_CONNECTS, cost.logins, service=service, kind="canary")
            show.set(names.CLOCK_STEP, self._engine.steps.last_s)
            show.set(names.STORE_UP, 0 if self._engine.store_error else 1)
            with contextlib.suppress(StoreError):  # said by the engine, and shown by STORE_UP
                await self._views.refresh_gauges(show)
            await asyncio.sleep(PULSE_S)

    def _state_trouble(self) -> str | None:
        """Why the state cannot be written now; None when it can."""
        if self._engine.store_error:
            return f"the state cannot be written: {self._engine.store_error}"
        silent_s = self._clock.monotonic() - self._engine.last_round
        return f"the state has not answered for {silent_s:.0f} s" if silent_s > STATE_SILENT_S else None

    def _unready(self) -> tuple[str, ...]:
        trouble = self._state_trouble()
        reasons = [] if trouble is None else [trouble]
        late_s = self._clock.monotonic() - self._last_pulse
        if late_s > 10 * PULSE_S:
            reasons.append(f"the event loop is {late_s:.0f} s late")
        return tuple(reasons)

    def _api_config(self) -> uvicorn.Config:
        answers = Answers(
            version=VERSION,
            metrics=self._exposition.pages,
            page=self._views.page,
            incident=self._views.incident,
            now=self._clock.now,
            unready=self._unready,
            reload=self.reload,
            token=lambda: self._settings.token,
            ping=self._heartbeats.ping,
            alerting=self._alerting,
        )
        return uvicorn.Config(
            create_api(answers),
            http=create_protocol(answers),
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=2,
            lifespan="off",
            server_header=False,
        )

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        background: set[asyncio.Task[None]] = set()

        async def reload_quietly() -> None:
            with contextlib.suppress(MonitorError):  # said in the log and by the metric
                await self.reload()

        def on_hangup() -> None:
            task = loop.create_task(reload_quietly())
            background.add(task)
            task.add_done_callback(background.discard)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, on_hangup)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.remove_signal_handler(number)

    async def _close(self) -> None:
        try:
            await self._engine.flush(whole=True)
        except StoreError as exc:
            log.error("the newest history is lost", error=str(exc))
        await self._outside.close()
        self._thread.close()
        self._reading.close()
        self._store.close()
        self._socket.close()


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers: signals are the program's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """Take the address before anything starts. Raises ``ListenError`` naming it and the cure."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise ListenError(f"cannot listen on {host}:{port}: {reason}; end what uses it, or change monitor.listen") from exc


def _refuse_what_needs_a_restart(old: Settings, new: Settings) -> None:
    changed = [
        (key, before != after)
        for key, before, after in (
            ("monitor.listen", (old.listen_host, old.listen_port), (new.listen_host, new.listen_port)),
            ("monitor.state", old.state_url, new.state_url),
        )
    ]
    problems = tuple(
        Problem(str(new.source), None, key, "cannot change while the monitor runs", "restart it") for key, differs in changed if differs
    )
    if problems:
        raise ConfigError(problems)
