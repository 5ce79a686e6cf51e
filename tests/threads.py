"""Workers that are threads of the test: what is tried is the order of the work, not the work."""

from __future__ import annotations

import multiprocessing
import threading
from multiprocessing.connection import Connection
from typing import Any, cast

from experiments.lab.sweep.pool import Worker, Workers


class Threads(Workers):
    """A subclass says what each answers through its pipe."""

    def start(self) -> Worker:
        ours, theirs = multiprocessing.Pipe()
        thread = threading.Thread(target=self.answer, args=(theirs,))
        thread.start()
        self.workers.append(Worker(cast(Any, thread), ours))
        return self.workers[-1]

    def answer(self, pipe: Connection) -> None:
        raise NotImplementedError
