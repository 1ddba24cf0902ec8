"""Ctrl-C, SIGTERM and SIGHUP as a wish that is granted at the next good moment."""

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

log = logging.getLogger("trimtab")


# of Ctrl-C, of batch systems, and of a terminal that is closed
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(KeyboardInterrupt):
    """A run that was asked to stop has written a checkpoint; the message says how to go on.

    Attributes:
        status: the exit status that the system expects after such a signal.
    """

    def __init__(self, said: str, number: int) -> None:
        super().__init__(said)
        self.status = 128 + number


class Interruption:
    """Within it the first signal is only noted; the second stops at once, by KeyboardInterrupt.

    Attributes:
        asked: the signal; None as long as there was none.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # signals reach no other
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                    self.before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = number
        log.warning("stopping after this step, with a checkpoint; once more stops at once, without one")
