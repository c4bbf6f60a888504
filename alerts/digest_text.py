"""How a digest reads as plain text, for mails and tickets: grouped by service, the worst first, capped with a link. Pure."""

from collections.abc import Sequence

from alerts.digest_message import DigestLine, DigestMessage

SHOWN = 200
"""Incidents named in one mail: mail readers cut what is longer than about 100 KB."""


def by_service(message: DigestMessage) -> list[tuple[str, list[DigestLine]]]:
    """The lines of each service together, the service with the worst one first."""
    found: dict[str, list[DigestLine]] = {}
    for line in message.lines:  # the worst first
        found.setdefault(line.service, []).append(line)
    return list(found.items())


def digest_text(message: DigestMessage, services: Sequence[tuple[str, Sequence[DigestLine]]], key: str) -> str:
    """The whole digest as plain text."""
    facts = (("How bad", message.severities), ("Where", message.services), ("Stand", message.standing), ("Since", message.began))
    parts = [message.title, f"{message.news}.", "\n".join(f"{name + ':':9}{text}" for name, text in facts)]
    for service, lines in services:
        parts.append("\n".join([f"{service}:", *(_line(line) for line in lines)]))
    if message.more:
        parts.append(f"{message.and_more}, all of them on the status page.")
    parts += [
        f"{message.status_page.title}: {message.status_page.url}",
        f"Many incidents opened at once, so they are told together ({key}).",
    ]
    return "\n\n".join(parts) + "\n"


def _line(line: DigestLine) -> str:
    what = f": {line.what}" if line.what else ""
    return f"  {line.severity.name}  {line.title}{what} ({line.state})\n      {line.url}"
