import signal
import threading

import pytest
from pebble import sighandler

SIGNALS = signal.SIGUSR1, signal.SIGUSR2


@pytest.fixture(autouse=True)
def handlers_as_before():
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize(
    "signals, expected",
    [
        (signal.SIGUSR1, SIGNALS[:1]),
        (int(signal.SIGUSR1), SIGNALS[:1]),
        ([signal.SIGUSR1], SIGNALS[:1]),
        ([signal.SIGUSR1, signal.SIGUSR2], SIGNALS),
        ((signal.SIGUSR1, int(signal.SIGUSR2)), SIGNALS),
    ],
    ids=["signal", "number", "list of one", "list", "tuple"],
)
def test_sets_the_handler(signals, expected):
    seen = []

    @sighandler(signals)
    def handler(signum, frame):
        seen.append((signum, frame is not None))

    for signum in expected:
        assert signal.getsignal(signum) is handler
        signal.raise_signal(signum)
    assert seen == [(signum, True) for signum in expected]


def test_sets_no_other():
    before = signal.getsignal(signal.SIGUSR2)
    sighandler(signal.SIGUSR1)(lambda signum, frame: None)
    assert signal.getsignal(signal.SIGUSR2) is before


def test_returns_the_function():
    def handler(signum, frame):
        """Its documentation."""

    assert sighandler(SIGNALS)(handler) is handler


def test_the_last_one_counts():
    @sighandler(signal.SIGUSR1)
    def first(signum, frame):
        raise AssertionError

    @sighandler(signal.SIGUSR1)
    def second(signum, frame):
        pass

    assert signal.getsignal(signal.SIGUSR1) is second


def test_what_it_raises_is_raised():
    @sighandler(signal.SIGUSR1)
    def handler(signum, frame):
        raise LookupError("handler")

    with pytest.raises(LookupError, match="handler"):
        signal.raise_signal(signal.SIGUSR1)


def test_only_in_the_main_thread():
    errors = []

    def decorate():
        try:
            sighandler(signal.SIGUSR1)(lambda signum, frame: None)
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=decorate)
    thread.start()
    thread.join()
    assert len(errors) == 1
