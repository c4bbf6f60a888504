"""Posts alerts as Prometheus does, over kept connections, to whoever has Alertmanager's API. Not counted."""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import uvloop

from bench.processes import answer_commands

LIVES_FOR = timedelta(hours=1)
"""Longer than any cell: nothing ends by itself."""


def alert(number: int, groups: int, label: str, begun: datetime, now: datetime) -> dict[str, Any]:
    """One alert in Prometheus's form: five labels, two annotations, both moments. ``number % groups`` is its group."""
    group = number % groups
    return {
        "labels": {
            "alertname": f"Disk{label}{group}",
            "instance": f"host{number}.example.com:9100",
            "job": "node",
            "service": f"{label}{group}",
            "severity": "warning",
        },
        "annotations": {
            "description": f"/var on host{number}.example.com has been over 90 percent for ten minutes",
            "summary": f"Disk of host{number}.example.com is nearly full",
        },
        "startsAt": f"{begun:%Y-%m-%dT%H:%M:%S.%fZ}",
        "endsAt": f"{now + LIVES_FOR:%Y-%m-%dT%H:%M:%S.%fZ}",
        "generatorURL": "http://prometheus.example.com:9090/graph?g0.expr=node_filesystem_avail_bytes&g0.tab=1",
    }


def requests(command: dict[str, Any], head: bytes, begun: datetime) -> list[bytes]:
    """Every POST of a command, ready to be written."""
    now = _now()
    size, found = command["per_post"], []
    for first in range(0, command["count"], size):
        numbers = range(first, min(first + size, command["count"]))
        body = json.dumps(
            [alert(number, command["groups"], command["label"], begun, now) for number in numbers], separators=(",", ":")
        ).encode()
        found.append(head + b"content-length: %d\r\n\r\n%s" % (len(body), body))
    return found


def _now() -> datetime:
    return datetime.now(UTC)


async def main(port: int, token: str) -> None:
    head = (
        f"POST /api/v2/alerts HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nuser-agent: Prometheus/2.42.0\r\n"
        f"authorization: Bearer {token}\r\ncontent-type: application/json\r\n"
    ).encode()
    begun: dict[str, datetime] = {}

    async def send(work: Iterator[bytes]) -> int:
        """Post until there is nothing left. Returns how many answers were not 200."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        bad = 0
        try:
            for request in work:
                writer.write(request)
                answer = await reader.readuntil(b"\r\n\r\n")
                length = answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length or 0))
                bad += not answer.startswith(b"HTTP/1.1 200 ")
        finally:
            writer.close()
            await writer.wait_closed()
        return bad

    async def handle(command: dict[str, Any]) -> dict[str, Any]:
        begun.setdefault(command["label"], _now())  # what is sent again began when it was sent first
        work = iter(requests(command, head, begun[command["label"]]))
        started_at = time.monotonic()
        bad = sum(await asyncio.gather(*(send(work) for _ in range(command["connections"]))))
        return {"bad": bad, "started_at": started_at, "ended_at": time.monotonic()}

    await answer_commands(handle)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
