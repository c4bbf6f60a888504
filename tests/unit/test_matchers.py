"""Matchers: read as amtool writes them, judged as Alertmanager judges them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts.matchers import matches, matches_everything, parse_matcher, parse_matchers, show_matcher
from monitor.domain import Matcher


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('service="auth"', Matcher("service", "auth")),
        ("service=auth", Matcher("service", "auth")),
        (' service != "auth" ', Matcher("service", "auth", is_equal=False)),
        ('service=~"auth|data"', Matcher("service", "auth|data", is_regex=True)),
        ("service!~a.*", Matcher("service", "a.*", is_regex=True, is_equal=False)),
        (r'what="a \"b\" \\ c\n"', Matcher("what", 'a "b" \\ c\n')),
        ("service=", Matcher("service", "")),
    ],
)
def test_a_matcher_is_read(written: str, read: Matcher) -> None:
    assert parse_matcher(written) == read


@pytest.mark.parametrize("written", ["", "service", '"auth"', "1a=b", 'service="au"th"', "service=~(", 'a="' + "x" * 5000 + '"'])
def test_what_is_no_matcher_is_refused_in_words(written: str) -> None:
    with pytest.raises(ValueError, match=r"matcher|RE2"):
        parse_matcher(written)


def test_a_filter_holds_several_conditions_and_commas_in_quotes() -> None:
    assert parse_matchers('{a="1,2", b=~"x{1,2}"}') == (Matcher("a", "1,2"), Matcher("b", "x{1,2}", is_regex=True))


@pytest.mark.parametrize(
    ("written", "labels", "holds"),
    [
        ('a="1"', {"a": "1"}, True),
        ('a="1"', {}, False),
        ('a=""', {}, True),
        ('a!="1"', {}, True),
        ('a=~"1"', {"a": "11"}, False),
        ('a=~"1.*"', {"a": "11"}, True),
        ('a!~"1.*"', {"a": "2"}, True),
        ('a=~"(?i)AUTH"', {"a": "auth"}, True),
    ],
)
def test_a_matcher_holds_for_the_whole_value(written: str, labels: dict[str, str], holds: bool) -> None:
    assert matches([parse_matcher(written)], labels) is holds


def test_an_expression_that_other_engines_choke_on_is_judged_at_once() -> None:
    assert not matches([parse_matcher("a=~(x+x+)+y")], {"a": "x" * 50_000})


@pytest.mark.parametrize(("written", "everything"), [('a=""', True), ("a=~.*", True), ('a!="x"', True), ("a=~.+", False), ("a=x", False)])
def test_a_matcher_that_matches_everything_is_known(written: str, everything: bool) -> None:
    assert matches_everything([parse_matcher(written)]) is everything


@given(st.text(min_size=0, max_size=60), st.booleans())
def test_what_is_shown_reads_back(value: str, is_equal: bool) -> None:
    matcher = Matcher("label", value, is_equal=is_equal)
    assert parse_matcher(show_matcher(matcher)) == matcher
