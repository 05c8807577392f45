"""What is logged in a worker process: it goes to the server, whose loggers, levels and handlers it meets."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from ..errors import RunCancelled, RunTimedOut
from ..functions.run import _current

# Of the server: level and whether disabled, of the loggers that have any of it; `logging.disable`; `captureWarnings`.
Settings = tuple[dict[str, tuple[int, bool]], int, bool]

_IMPORTING = "<frozen importlib._bootstrap>"
_formatter = logging.Formatter()


def settings() -> Settings:
    """Of the loggers here: what a worker process needs, so that nothing is sent that nobody wants."""
    levels = {"root": (logging.root.level, logging.root.disabled)}
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and (logger.level or logger.disabled):
            levels[name] = (logger.level, logger.disabled)
    capturing = logging._warnings_showwarning is not None  # type: ignore[attr-defined]
    return levels, logging.root.manager.disable, capturing


def handle(fields: dict[str, Any]) -> None:
    """In the server: let the loggers have a record of a worker process. Whatever a handler raises goes to stderr."""
    try:
        record = logging.makeLogRecord(fields)
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
    except BaseException:
        where = fields["pathname"], fields["lineno"]
        _direct.handleError(logging.LogRecord(fields["name"], fields["levelno"], *where, fields["msg"], None, None))


def keep_lines() -> None:
    """
    In the server: let each run have what is logged in it, after the filters of its logger. Idempotent.

    Not by a handler of the root logger: for `basicConfig` that would be one that the user has set up.
    """
    global _kept
    if _kept:
        return
    _kept, call_handlers = True, logging.Logger.callHandlers

    @wraps(call_handlers)
    def keeping(self: logging.Logger, record: logging.LogRecord) -> None:
        if (run := _current.get()) is not None:
            run.note(record)
        call_handlers(self, record)

    logging.Logger.callHandlers = keeping  # type: ignore[method-assign]


_kept = False


def send_records(send: Callable[[dict[str, Any]], bool]) -> None:
    """
    In a worker process: send what is logged, and leave the set-up of logging to the server.

    Parameters
    ----------
    send : callable
        ``send(fields)``: whether it was sent. Else it goes to stderr.

    Not by a handler of the root logger, which a module or a function may take away, or keep records from.
    """
    call_handlers, add_handler = logging.Logger.callHandlers, logging.Logger.addHandler
    open_file = logging.FileHandler.__init__

    @wraps(call_handlers)
    def sending(self: logging.Logger, record: logging.LogRecord) -> None:
        try:
            sent = send(fields_of(record))
        except (RunCancelled, RunTimedOut):
            raise
        except Exception:
            _direct.handleError(record)
        else:
            if not sent:
                _direct.handle(record)
        if self.hasHandlers():
            call_handlers(self, record)

    @wraps(add_handler)
    def adding(self: logging.Logger, hdlr: logging.Handler) -> None:
        if not _at_an_import():
            add_handler(self, hdlr)

    @wraps(open_file)
    def opening(
        self: logging.FileHandler,
        filename: Any,
        mode: str = "a",
        encoding: Any = None,
        delay: bool = False,
        *rest: Any,
        **options: Any,
    ) -> None:
        if _at_an_import():  # the server has this file open, and has emptied it when it was to be
            mode, delay = mode.replace("w", "a"), True
        open_file(self, filename, mode, encoding, delay, *rest, **options)

    logging.Logger.callHandlers = sending  # type: ignore[method-assign]
    logging.Logger.addHandler = adding  # type: ignore[method-assign]
    logging.FileHandler.__init__ = opening  # type: ignore[method-assign]
    logging.root.addHandler(logging.NullHandler())  # for `basicConfig`, which sets up what has no handler


# Where a record goes that nobody else takes.
_direct = logging.StreamHandler()
_direct.setFormatter(logging.Formatter(logging.BASIC_FORMAT))


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """A record as text and numbers; what was added to it, too, by `extra` say."""
    fields = {name: _plain(value) for name, value in vars(record).items() if name not in ("msg", "args", "exc_info")}
    fields["msg"], fields["args"], fields["levelno"] = record.getMessage(), None, int(record.levelno)
    if record.exc_info and not record.exc_text:
        fields["exc_text"] = _formatter.formatException(record.exc_info)
    return fields


def _plain(value: Any) -> Any:
    kind = type(value)
    if value is None or kind in (str, int, float, bool):
        return value
    if kind in (list, tuple):
        return [_plain(each) for each in value]
    if kind is dict:
        return {str(name): _plain(each) for name, each in value.items()}
    return str(value)


def _at_an_import() -> bool:
    """Whether a module is being imported, which has set up the logging of the server already."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
