"""What the settings mean to a decision: the same for the running engine and for a simulation."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from alerts.decide import Policy
from monitor.config.settings import CheckInstance, Settings
from monitor.domain import AlertPolicy, Guide
from monitor.store import Causes


def policy_of(settings: Settings, guides: Mapping[str, Guide], alert: AlertPolicy) -> Policy:
    """What the configuration says about everybody who may have to hear, without what mutes."""
    return Policy(alert=alert, chains=settings.escalation, guides=guides, people=settings.people, responses=settings.responses)


def causes_of(instance: CheckInstance, now: datetime) -> Causes:
    """Where to look for the cause of what an instance found."""
    since = now - timedelta(seconds=instance.linger_s) if instance.linger_s else None
    return Causes(services=instance.upstream, instances=instance.depends_on, since=since)
