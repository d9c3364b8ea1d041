"""One function for several signals."""

import os
import signal

from pebble import sighandler

received = []


@sighandler((signal.SIGINT, signal.SIGTERM))
def signal_handler(signum, frame):
    received.append(signal.Signals(signum).name)
    print("Termination request received!")


if __name__ == "__main__":
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    assert received == ["SIGINT", "SIGTERM"]
