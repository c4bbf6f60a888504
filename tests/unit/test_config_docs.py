"""The reference of the configuration is what the declarations say."""

from pathlib import Path
from typing import Annotated, Any

import pytest

import alerts
import checks
from checks.pg_helpers import INSTALL
from monitor.config.check_docs import pages
from monitor.config.docs import describe, kind_of, show_duration
from monitor.config.values import Days, Dsn, Interval
from monitor.plugins import Duration, LocalPath, Secret, parse_duration_s

REFERENCE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_reference_is_not_stale() -> None:
    fresh = describe(checks.BUILTINS, alerts.BUILTINS)
    assert REFERENCE.read_text() == fresh, "run: python -m monitor.config.docs > docs/configuration.md"


def test_every_check_has_its_page_and_none_is_stale() -> None:
    written = {path.name: path.read_text() for path in (REFERENCE.parent / "checks").glob("*.md")}
    assert written == pages(checks.BUILTINS), "run: make docs"


def test_the_functions_for_a_database_are_those_that_are_documented_and_that_the_platform_installs() -> None:
    root = REFERENCE.parents[1]
    assert f"```sql\n{INSTALL}```" in (root / "docs" / "postgresql.md").read_text()
    assert (root / "services" / "database" / "platmon.sql").read_text().endswith("\n\n" + INSTALL)


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        (str, "text"),
        (Secret | None, "secret"),
        (Dsn, "secret"),
        (Duration, "duration"),
        (Interval | None, "duration"),
        (Days, "duration"),
        (list[LocalPath], "list of path"),
        (tuple[Annotated[int, "ports"], ...], "list of whole number"),
        (dict[str, float], "table of number"),
        (int | bool, "whole number or true or false"),
    ],
)
def test_kinds_in_plain_words(annotation: Any, kind: str) -> None:
    assert kind_of(annotation) == kind


@pytest.mark.parametrize(("seconds", "shown"), [(0.25, "250ms"), (2, "2s"), (90, "90s"), (1800, "30m"), (7200, "2h"), (86_400, "1d")])
def test_durations_are_shown_as_they_are_written(seconds: float, shown: str) -> None:
    assert show_duration(seconds) == shown
    assert parse_duration_s(shown) == seconds
