"""Where the services write: JSON lines in ``LOG_DIR/<name>-service.log``, and errors once more in ``<name>-service-error.log``.

Files rotate by size, and are reopened when somebody else (logrotate, another instance) has moved them away.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

import structlog

FILE_MAX_BYTES = 10 * 1024 * 1024
FILES_KEPT = 5
POOL = "psycopg.pool"
LOGGERS = {"services": logging.INFO, "uvicorn.error": logging.INFO, POOL: logging.WARNING}


class ServiceLog(RotatingFileHandler):
    """A rotating file that follows its path: it never goes on writing into a file that was moved or deleted."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=FILE_MAX_BYTES, backupCount=FILES_KEPT, encoding="utf-8")
        self.setFormatter(json_formatter())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self.stream is not None and _moved_away(self.stream, self.baseFilename):
                self.stream.close()
                self.stream = self._open()
        except OSError:  # e.g. the folder is gone: a log that cannot be written must not fail the request
            self.handleError(record)
            return
        super().emit(record)


def _moved_away(stream: TextIO, path: str) -> bool:
    try:
        there, ours = os.stat(path), os.fstat(stream.fileno())
    except FileNotFoundError:
        return True
    return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)


def _is_error(record: logging.LogRecord) -> bool:
    """The pool only warns, but it alone says why the database gives no connection ("too many clients already")."""
    return record.levelno >= logging.ERROR or record.name == POOL


def json_formatter() -> logging.Formatter:
    """One JSON object a line: timestamp, level, logger, event, and whatever the call gave as ``extra``."""
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            _without_colours,
            structlog.processors.JSONRenderer(),
        ],
    )


def _without_colours(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    event.pop("color_message", None)  # uvicorn's own, for terminals
    return event


@contextmanager
def open_logs(service: str, folder: Path, *, ingestion: bool = False) -> Iterator[None]:
    """Attach the files of one service while it runs. ``ingestion`` adds the progress of jobs in ``data-ingestion-service.log``."""
    files: list[tuple[str, logging.Handler]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        whole, errors = ServiceLog(folder / f"{service}.log"), ServiceLog(folder / f"{service}-error.log")
        errors.addFilter(_is_error)
        files += [(name, handler) for name in LOGGERS for handler in (whole, errors)]
        if ingestion:
            files.append(("services.ingestion", ServiceLog(folder / "data-ingestion-service.log")))
    except OSError as exc:
        # A service that cannot write its log still serves; stderr says why the log is empty.
        print(f"{service}: no log files in {folder}: {exc.strerror}", file=sys.stderr)
    for name, handler in files:
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(LOGGERS.get(name, logging.INFO))
    try:
        yield
    finally:
        for name, handler in files:
            logging.getLogger(name).removeHandler(handler)
            handler.close()
