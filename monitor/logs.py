"""The monitor's own log: one JSON object a line for machines, readable lines on a terminal."""

import sys

import structlog


def configure_logging(*, pretty: bool | None = None) -> None:
    """Write structured lines to standard error. Control characters are escaped, so nothing can forge a line."""
    pretty = sys.stderr.isatty() if pretty is None else pretty
    render: structlog.types.Processor = structlog.dev.ConsoleRenderer() if pretty else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            render,
        ],
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
