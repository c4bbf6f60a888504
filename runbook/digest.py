"""The seal of a plan: a hash over everything that will happen, and over nothing else.

Wording that only people read (summary, titles, echoed parameters) may age between showing and applying; the seal must not.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from uuid import UUID

from monitor.domain import Plan
from monitor.errors import PluginError


def canonical(plan: Plan) -> str:
    """What the plan will do, as canonical JSON: its name, service and lock, and each step's SQL, parameters and promised rows.

    Raises ``PluginError`` when a parameter has a type that has no canonical form.
    """
    return json.dumps(
        {
            "plan": plan.name,
            "service": plan.service,
            "lock": plan.lock,
            "steps": [
                {"sql": step.sql, "params": _plain(dict(step.params), plan.name), "expect_rows": step.expect_rows} for step in plan.steps
            ],
        },
        sort_keys=True,
        separators=(",", ":"),
    )


def digest_of(plan: Plan) -> str:
    """SHA-256 of :func:`canonical`, in hexadecimal."""
    return sha256(canonical(plan).encode()).hexdigest()


def sealed(plan: Plan) -> Plan:
    """The same plan with its lock filled in when it has none, and its digest set."""
    locked = replace(plan, lock=plan.lock or f"{plan.name}/{plan.service}")
    return replace(locked, digest=digest_of(locked))


def _plain(value: object, plan: str) -> object:
    """A value as JSON in which different values never look the same: what JSON cannot say carries its type."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case datetime() | date() | timedelta() | Decimal() | UUID():
            return {type(value).__name__: str(value)}
        case bytes():
            return {"bytes": value.hex()}
        case list():
            return [_plain(item, plan) for item in value]
        case tuple():  # PostgreSQL receives a composite, not an array
            return {"tuple": [_plain(item, plan) for item in value]}
        case Mapping():
            return {"map": {str(name): _plain(item, plan) for name, item in value.items()}}
    raise PluginError(f"plan {plan}: a parameter of type {type(value).__name__} cannot be sealed; use text, numbers or times")
