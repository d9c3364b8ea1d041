"""Third party code that is unstable: every way that a call may end."""

from concurrent.futures import TimeoutError

from pebble import ProcessExpired, concurrent
from third_party_lib import unstable_function


@concurrent.process(timeout=0.5)
def function(arg, kwarg=0):
    return unstable_function(arg, kwarg=kwarg)


def call(mood):
    """What became of it, in a word."""
    future = function(mood, kwarg=1)
    try:
        print(mood, "->", future.result())
        return "result"
    except TimeoutError as error:
        print("unstable_function took longer than %.1f seconds" % error.args[1])
        return "timeout"
    except ProcessExpired as error:
        print("%s. Exit code: %d" % (error, error.exitcode))
        return error.exitcode
    except Exception as error:
        print("unstable_function raised %s" % error)
        print(error.traceback)  # Python's traceback of remote process
        return "error"


if __name__ == "__main__":
    moods = ["fine", "hang", "error", "exit", "crash"]
    assert [call(mood) for mood in moods] == ["result", "timeout", "error", 3, -11]
