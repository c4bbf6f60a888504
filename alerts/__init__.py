"""What a finding means and who hears of it: pure decisions, and one notifier a file.

Re-exports the contract, for authors of notifiers; ``BUILTINS`` lists the notifiers that ship.
"""

from alerts.alertmanager import alertmanager
from alerts.email import email
from alerts.pagerduty import pagerduty
from alerts.slack import slack
from alerts.tickets import github, jira
from alerts.webhook import webhook
from monitor.domain import Digest, Notification, Receipt
from monitor.errors import DeliveryError
from monitor.plugins import AnyNotifier, Digesting, Notifier, NotifyContext, PluginConfig, Secret, notifier

BUILTINS: tuple[AnyNotifier, ...] = (pagerduty, slack, email, github, jira, webhook, alertmanager)

__all__ = [
    "BUILTINS",
    "DeliveryError",
    "Digest",
    "Digesting",
    "Notification",
    "Notifier",
    "NotifyContext",
    "PluginConfig",
    "Receipt",
    "Secret",
    "notifier",
]
