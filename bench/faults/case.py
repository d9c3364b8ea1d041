"""One scenario with one contender: what it looks at, and the words for what it saw."""

import collections
import re
import threading
import time

import pools
import processes
import tasks

PATIENCE = 5  # seconds after which something hangs
DIED, TIMED_OUT, CANCELLED, FAILED, PENDING = "died", "timed out", "cancelled", "failed", "pending"

End = collections.namedtuple("End", "kind detail seconds")


class Over(Exception):
    """There is nothing more to be seen."""


class Case:
    def __init__(self, contender):
        self.contender = contender
        self.notes = []  # what went wrong, for the table
        self.figures = []  # for the table, too
        self.ends = collections.Counter()  # how each future ended
        self.pool = None
        self.patience = PATIENCE
        self.hung = False

    def note(self, text):
        if text not in self.notes:
            self.notes.append(text)

    def hangs(self, what):
        """Notes it; the next wait is short, and after three there is no other."""
        self.note(what)
        self.hung = True
        self.patience /= 4
        if self.patience < 0.1:
            raise Over

    # ---- The pool

    def open(self, **options):
        self.pool = self.contender.open(**options)
        return self.pool

    def submit(self, function, *args, **options):
        return self.contender.submit(self.pool, function, *args, **options)

    def workers(self):
        """The numbers of both workers, which are idle then."""
        futures = [self.submit(tasks.process_id, 0.3) for _ in range(2)]
        return {self.contender.result(future, PATIENCE) for future in futures}

    def in_time(self, what, call, *args, seconds=None):
        """Calls in a thread of its own, which may never come back; the seconds that it took."""

        def run():
            try:
                call(*args)
            except Exception as error:
                self.count(f"{what}: {type(error).__name__}: {error}")

        start = time.monotonic()
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(seconds or self.patience)
        if thread.is_alive():
            self.hangs(f"{what} hangs")
        return time.monotonic() - start

    def close(self):
        if self.pool is not None:
            self.in_time("close", self.contender.close, self.pool)
            self.pool = None

    def stop(self):
        """As fast as it can be; the seconds that it took."""
        pool, self.pool = self.pool, None
        return self.in_time("stop", self.contender.stop, pool)

    # ---- Futures

    def count(self, end):
        """Of those that differ in numbers only, one."""
        self.ends[re.sub("[0-9]+", "N", end.splitlines()[0])[:120]] += 1

    def kind_of(self, name):
        if name in self.contender.died:
            return DIED
        if name in self.contender.timed_out:
            return TIMED_OUT
        return CANCELLED if name == "CancelledError" else FAILED

    def end_of(self, future):
        start = time.monotonic()
        try:
            kind, detail = "value", self.contender.result(future, self.patience)
        except pools.Pending:
            kind, detail = PENDING, None
        except BaseException as error:
            name = type(error).__name__
            kind, detail = self.kind_of(name), f"{name}: {error}"
        self.count(kind if kind in ("value", PENDING) else f"{kind}, {detail}")
        return End(kind, detail, time.monotonic() - start)

    def expect(self, future, *kinds):
        """It ends so."""
        end = self.end_of(future)
        if end.kind == PENDING:
            self.hangs("hangs")
        elif end.kind not in kinds:
            self.note("wrong reason" if end.kind != "value" else "no error")
        return end

    def expect_ends(self, futures, *kinds):
        """They all end so; the first that does not is enough."""
        for future in futures:
            end = self.end_of(future)
            if end.kind == PENDING:
                return self.hangs("futures never end")
            if end.kind not in kinds:
                return self.note("wrong reason")

    def expect_values(self, futures, values, whose):
        for future, value in zip(futures, values):
            end = self.end_of(future)
            if end.kind == PENDING:
                return self.hangs(f"{whose} hang")
            if (end.kind, end.detail) != ("value", value):
                return self.note(f"{whose} lost")

    def expect_usable(self):
        try:
            futures = [self.submit(tasks.value, n) for n in range(4)]
        except Exception as error:
            self.count(f"submit: {type(error).__name__}: {error}")
            return self.note("pool broken")
        for n, future in enumerate(futures):
            end = self.end_of(future)
            if end.kind == PENDING:
                return self.hangs("pool hangs")
            if (end.kind, end.detail) != ("value", n):
                return self.note("pool broken")

    def expect_timeout(self, future, deadline):
        """It ends as timed out; how long after the deadline."""
        if self.expect(future, TIMED_OUT).kind != PENDING:
            self.figures.append(f"{max(time.monotonic() - deadline, 0):.2f} s late")

    def expect_gone(self, pids_of, seconds=1):
        count = processes.gone(pids_of, seconds)
        if count:
            self.note(f"left {count} process{'es' * (count > 1)}")
