"""How many files wait in a folder, and for how long? The whole of a check: its configuration, what it looks at, what that means."""

import asyncio
from pathlib import Path

from pydantic import Field

from monitor.domain import FindingKind, Metric, Observed, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Duration, LocalPath, PluginConfig, check

DEPTH = Metric("monitor_queue_depth", "Files that wait in the folder.")
OLDEST = Metric("monitor_queue_oldest_seconds", "How long the oldest of them has been waiting; 0 when there is none.")

DEEP = FindingKind("QueueDeep", Severity.P3, None, "Files wait in the folder for longer than wait_after.")


class Config(PluginConfig):
    """Keys of a ``queue_depth`` check."""

    folder: LocalPath = Field(description="The folder; each of its files is one message.")
    wait_after: Duration = Field(600.0, gt=0, description="A file that waits longer is found.")


@check(
    "queue_depth",
    config=Config,
    metrics=(DEPTH, OLDEST),
    finds=(DEEP,),
    blind="The folder is missing, or may not be read.",
    why="Nobody picks the files up any more: what was to be done with them is not done.",
)
async def queue_depth(ctx: CheckContext, cfg: Config) -> Observed:
    """Counts the files of a folder and takes the age of the oldest."""
    try:
        waiting = await asyncio.to_thread(lambda: [entry.stat().st_mtime for entry in Path(cfg.folder).iterdir() if entry.is_file()])
    except OSError as exc:
        raise CannotLook(f"the folder {cfg.folder} cannot be read: {exc.strerror}: is the path right?") from exc
    oldest_s = max(0.0, ctx.clock.now().timestamp() - min(waiting)) if waiting else 0.0
    samples = (DEPTH(len(waiting)), OLDEST(oldest_s))
    if oldest_s <= cfg.wait_after:
        return Observed(samples)
    facts = {"waiting": f"{len(waiting)} files", "folder": cfg.folder, "first": "is the process that reads them running?"}
    return Observed(samples, (DEEP(f"a file has been waiting for {oldest_s:.0f} s ({ctx.service.name})", facts=facts, value=oldest_s),))
