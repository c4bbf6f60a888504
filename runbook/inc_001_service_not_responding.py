"""INC-001: a service does not answer. Owns what the runbook says first about it."""

from monitor.domain import Guide
from monitor.plugins import RunbookEntry

INC_001 = RunbookEntry(
    Guide(
        code="INC-001",
        title="Service Not Responding",
        first_step="Is the process running, its port bound? `ps aux | grep uvicorn`, then `tail -100` the service's error log",
    )
)
