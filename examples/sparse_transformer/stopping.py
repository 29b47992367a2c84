"""Ctrl-C and SIGTERM: a training ends its step, writes a checkpoint, and ends with one line."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopping:
    """Listens for both signals while it is open.

    `patient` says that the main thread looks at `signal` after every step. Where it does not, and at the second
    signal, the process ends at once: no file is ever half-written (files.py). A thread of its own listens, as the main
    one may be inside TensorFlow for minutes, where Python's own handlers do not run.
    """

    def __init__(self, command: str):
        self.command = command
        self.signal: int | None = None
        self.patient = False
        self.moment = "before its first step"

    def __enter__(self) -> Stopping:
        self.reader, self.writer = socket.socketpair()
        self.writer.setblocking(False)
        self.earlier = {number: signal.getsignal(number) for number in NAMES}
        self.wakeup = signal.set_wakeup_fd(self.writer.fileno(), warn_on_full_buffer=False)
        self.install()
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def install(self) -> None:
        """Again after TensorFlow has connected workers, as it puts a handler of its own in the place of SIGTERM's."""
        for number in NAMES:
            signal.signal(number, lambda *_: None)

    def __exit__(self, *_) -> None:
        for number, handler in self.earlier.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self.wakeup)
        self.writer.close()

    def _listen(self) -> None:
        while received := self.reader.recv(1):
            number = received[0]
            if number not in NAMES:
                continue
            if self.patient and self.signal is None:
                self.signal = number
            else:
                self.say(number, self.moment)
                os._exit(128 + number)
        self.reader.close()

    def say(self, number: int | None, moment: str) -> None:
        name = "another worker" if number is None else NAMES[signal.Signals(number)]
        sys.stderr.write(f"\n{self.command}: stopped by {name} {moment}\n")
        sys.stderr.flush()
