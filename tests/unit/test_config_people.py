"""Contacts, rotations, responses, maintenance and inhibition: what good tables become, and what is said of bad ones."""

from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from alerts.muting import Inhibition
from alerts.oncall import Override, Rotation
from monitor.domain import EscalationStep, Matcher, ResponsePolicy, Severity
from monitor.errors import ConfigError
from tests.support.configured import AUTH, MAIL, load

GOOD = (
    f"""\
[monitor]
timezone = "Europe/Berlin"
{AUTH}{MAIL}"""
    """\
[contacts.anna]
channels = ["mail"]
[contacts.ben]
channels = ["mail"]
[rotations.platform]
members = ["anna", "ben"]
starts = 2026-01-05
handover = "08:30"
days = 1
overrides = [{contact = "ben", starts = 2026-01-06T00:00:00, ends = 2026-01-07T00:00:00Z}]
[escalation]
P1 = [{after = "0s", who = "on-call", contacts = ["platform"]}]
P2 = [{after = "0s", who = "on-call", channels = ["mail"], contacts = ["anna"], hours = "business"}]
P3 = [{after = "0s", who = "on-call", channels = ["mail"]}]
P4 = [{after = "0s", who = "on-call", channels = ["mail"]}]
[response]
P1 = {within = "15m", ack_expires = "1h", remind = "30m"}
[maintenance.backup]
matchers = ['service="auth"', 'severity=~"P3|P4"']
schedule = "0 2 * * 0"
lasts = "2h"
[maintenance.move]
matchers = ['service="auth"']
starts = 2026-06-01T20:00:00
ends = 2026-06-01T22:00:00
[[inhibit]]
source = ["alertname=HostDown"]
target = ["severity=~P[34]"]
equal = ["zone"]
"""
)


def test_people_and_plans_are_resolved(tmp_path: Path) -> None:
    settings = load(tmp_path, GOOD)
    berlin = ZoneInfo("Europe/Berlin")
    assert settings.people.contacts == {"anna": ("mail",), "ben": ("mail",)}
    override = Override("ben", datetime(2026, 1, 6, tzinfo=berlin), datetime(2026, 1, 7, tzinfo=UTC))
    rotation = Rotation(("anna", "ben"), date(2026, 1, 5), berlin, time(8, 30), 1, (override,))
    assert settings.people.rotations == {"platform": rotation}
    assert settings.escalation[Severity.P1] == (EscalationStep(0, "on-call", (), ("platform",)),)
    assert settings.escalation[Severity.P2][0].business_hours
    assert settings.responses == {Severity.P1: ResponsePolicy(900, 3600, 1800)}
    backup, move = settings.windows
    assert (backup.schedule, backup.lasts, backup.timezone) == ("0 2 * * 0", timedelta(hours=2), berlin)
    assert backup.matchers == (Matcher("service", "auth"), Matcher("severity", "P3|P4", is_regex=True))
    assert move.active_until(datetime(2026, 6, 1, 18, 30, tzinfo=UTC)) == datetime(2026, 6, 1, 20, tzinfo=UTC)
    severities = Matcher("severity", "P[34]", is_regex=True)
    assert settings.inhibitions == (Inhibition((Matcher("alertname", "HostDown"),), (severities,), ("zone",)),)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('contacts = ["platform"]', 'contacts = ["platfrom"]', "escalation.P1[0].contacts[0]: there is no contact \"platfrom\""),
        ('contacts = ["platform"]', "contacts = []", "escalation.P1[0].channels: must not be empty: the step reaches nobody"),
        ('members = ["anna", "ben"]', 'members = ["anna", "bne"]', "rotations.platform.members[1]"),
        ('{contact = "ben"', '{contact = "bne"', "rotations.platform.overrides[0].contact"),
        ("ends = 2026-01-07T00:00:00Z", "ends = 2026-01-05T00:00:00Z", "rotations.platform.overrides[0].ends: must be later than starts"),
        ("[contacts.ben]", "[contacts.platform]", "rotations.platform: a contact has the same name"),
        ("[contacts.ben]\nchannels = [\"mail\"]", "[contacts.ben]\nchannels = [\"male\"]", "contacts.ben.channels[0]"),
        ("P1 = {within", "P5 = {within", "response.P5"),
        ('within = "15m"', 'within = "0s"', "response.P1.within: must be greater than 0"),
        ("'service=\"auth\"', 'sev", "'service', 'sev", "maintenance.backup.matchers[0]: not a matcher"),
        ("'service=\"auth\"', 'severity=~\"P3|P4\"'", "'severity=~\".*\"'", "maintenance.backup.matchers: matches every alert there is"),
        ('schedule = "0 2 * * 0"', 'schedule = "0 2 * *"', "maintenance.backup.schedule: the schedule is none that cron knows"),
        ('lasts = "2h"', "", "maintenance.backup.lasts: is required and missing"),
        ("ends = 2026-06-01T22:00:00", "", "maintenance.move.starts: write starts and ends, or schedule and lasts"),
        ("ends = 2026-06-01T22:00:00", "ends = 2026-06-01T19:00:00", "maintenance.move.ends: must be later than starts"),
        ('source = ["alertname=HostDown"]', 'source = ["alertname=~("]', "inhibit[0].source[0]: not an RE2 expression"),
        ('to = ["ops@example.com"]', 'to = ["ops@example.com"]\nfallback = "mail"', "channels.mail.fallback: leads back to this channel"),
        ('to = ["ops@example.com"]', 'to = ["ops@example.com"]\nfallback = "mial"', "channels.mail.fallback: there is no channel"),
        ("[[inhibit]]", "[inhibit]", "inhibit: must be written [[inhibit]]"),
    ],
)  # fmt: skip
def test_every_mistake_is_said_at_its_place(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace(old, new))
    assert said in str(caught.value)
