"""How our Grafana panels look: one function a kind, each with a title, a description, a unit and all its options set.

Every query is ``(expression, legend)``; the data source is always the dashboard's own variable.
"""

from collections.abc import Sequence

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as dashboard_builders
from grafana_foundation_sdk.builders import prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as prometheus_models

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")

GREEN, ORANGE, RED, GREY, PURPLE = "green", "orange", "red", "text", "purple"

Panel = stat.Panel | timeseries.Panel | statetimeline.Panel
Query = tuple[str, str]
Steps = Sequence[tuple[float | None, str]]
"""Colours from a value on; the first has no value and is the colour below all others."""

Words = dict[str, tuple[str, str]]
"""What a value is called, and its colour."""


def figures(
    title: str, description: str, unit: str, queries: Sequence[Query], *, width: int, steps: Steps, words: Words | None = None, none: str
) -> stat.Panel:
    """One big figure a series. ``none`` is shown when there is no series at all."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .datasource(DATASOURCE)
        .span(width)
        .height(4)
        .no_value(none)
        .thresholds(_thresholds(steps))
        .color_scheme(dashboard_builders.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .mappings(_mappings(words or {}))
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
        .color_mode(common.BigValueColorMode.BACKGROUND if words else common.BigValueColorMode.VALUE)
        .graph_mode(common.BigValueGraphMode.NONE)
        .justify_mode(common.BigValueJustifyMode.AUTO)
        .orientation(common.VizOrientation.AUTO)
        .text_mode(common.BigValueTextMode.AUTO)
        .wide_layout(True)
    )
    for number, query in enumerate(queries):
        panel.with_target(_target(query, number).instant())
    return panel


def lines(
    title: str,
    description: str,
    unit: str,
    queries: Sequence[Query],
    *,
    width: int,
    stacked: bool = False,
    most: float | None = None,
    steps: Steps = (),
) -> timeseries.Panel:
    """Values over time from zero up, a dashed line at each step."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .datasource(DATASOURCE)
        .span(width)
        .height(8)
        .min(0)
        .draw_style(common.GraphDrawStyle.LINE)
        .line_interpolation(common.LineInterpolation.LINEAR)
        .line_width(1)
        .fill_opacity(25 if stacked else 8)
        .show_points(common.VisibilityMode.AUTO)
        .span_nulls(False)
        .stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL if stacked else common.StackingMode.NONE).group("A"))
        .thresholds(_thresholds(steps or ((None, GREEN),)))
        .thresholds_style(
            common_builders.GraphThresholdsStyleConfig().mode(
                common.GraphThresholdsStyleMode.DASHED if steps else common.GraphThresholdsStyleMode.OFF
            )
        )
        .legend(_legend())
        .tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING))
    )
    if most is not None:
        panel.max(most)
    for number, query in enumerate(queries):
        panel.with_target(_target(query, number).range())
    return panel


def states(title: str, description: str, queries: Sequence[Query], *, width: int, words: Words) -> statetimeline.Panel:
    """Which state each series was in, over time. A gap means nobody looked."""
    panel = (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .unit("short")
        .datasource(DATASOURCE)
        .span(width)
        .height(8)
        .fill_opacity(80)
        .line_width(0)
        .mappings(_mappings(words))
        .thresholds(_thresholds(((None, GREY),)))
        .color_scheme(dashboard_builders.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .merge_values(True)
        .row_height(0.8)
        .show_value(common.VisibilityMode.NEVER)
        .legend(_legend())
        .tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.SINGLE).sort(common.SortOrder.NONE))
    )
    for number, query in enumerate(queries):
        panel.with_target(_target(query, number).range())
    return panel


def number_panels(dashboard: models.Dashboard) -> models.Dashboard:
    """Give every panel its id: the SDK leaves it out, and links to a panel need it."""
    for number, panel in enumerate(dashboard.panels or (), start=1):
        panel.id_val = number
    return dashboard


def _target(query: Query, number: int) -> prometheus.Dataquery:
    expression, legend = query
    return (
        prometheus.Dataquery()
        .datasource(DATASOURCE)
        .ref_id("ABCDEFGHIJ"[number])
        .expr(expression)
        .legend_format(legend)
        .editor_mode(prometheus_models.QueryEditorMode.CODE)
    )


def _thresholds(steps: Steps) -> dashboard_builders.ThresholdsConfig:
    return (
        dashboard_builders.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value=value, color=color) for value, color in steps])
    )


def _mappings(words: Words) -> list[models.ValueMapping]:
    if not words:
        return []
    options = {
        value: models.ValueMappingResult(text=text, color=color, index=index) for index, (value, (text, color)) in enumerate(words.items())
    }
    return [models.ValueMap(options=options)]


def _legend() -> common_builders.VizLegendOptions:
    return (
        common_builders.VizLegendOptions()
        .show_legend(True)
        .display_mode(common.LegendDisplayMode.LIST)
        .placement(common.LegendPlacement.BOTTOM)
        .calcs([])
    )
