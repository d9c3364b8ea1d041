"""Exceptions of the package, beside those of concurrent.futures."""

import signal
from typing import Optional, Tuple

__all__ = ["ProcessExpired", "RemoteTraceback"]


class ProcessExpired(Exception):
    """Raised by Future.result() if the process of the call died unexpectedly.

    exitcode: its exit code (int); if a signal ended it, minus that signal's number
    pid: its process id (int), or None
    backtrace: of a crash, the native functions that were running, one a line (str); else None
    """

    def __init__(
        self,
        message: str = "the process died unexpectedly",
        exitcode: int = 0,
        pid: Optional[int] = None,
        backtrace: Optional[str] = None,
    ) -> None:
        super().__init__(message)
        self.exitcode = exitcode
        self.pid = pid
        self.backtrace = backtrace

    def __str__(self) -> str:
        text = str(self.args[0]) if self.args else ""
        if self.exitcode < 0:
            name = _signal_name(-self.exitcode)
            if name not in text:
                text = f"{text} ({name})"
        if self.backtrace:
            text = f"{text}\n{self.backtrace.rstrip()}"
        return text

    def __reduce__(self) -> Tuple[object, ...]:
        arguments = (self.args[0] if self.args else "", self.exitcode, self.pid, self.backtrace)
        return type(self), arguments, self.__dict__


class RemoteTraceback(Exception):
    """Shows where an exception was raised in another process: the __cause__ of that exception.

    text: the traceback there (str)
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
