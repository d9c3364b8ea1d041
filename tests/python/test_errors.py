import pickle
import traceback

import pytest
from pebble import ProcessPool, RemoteTraceback

import tasks
from support import outcomes, start_workers

# What pickle may raise about a thing that it cannot save.
UNPICKLABLE = (pickle.PicklingError, TypeError, AttributeError)


@pytest.fixture(scope="module")
def workers(process_pool, tmp_path_factory):
    return start_workers(process_pool, tmp_path_factory.mktemp("flags"))


@pytest.fixture(autouse=True)
def nothing_else_is_harmed(process_pool, workers):
    """Each error is its own future's and nothing else's: the same workers go on."""
    yield
    assert {
        process_pool.schedule(tasks.process_id).result() for _ in range(10)
    } <= workers


def error_of(pool, function, *args):
    future = pool.schedule(function, args=args)
    error = future.exception(10)
    with pytest.raises(BaseException) as caught:
        future.result()
    assert caught.value is error
    return error


# ---- Exceptions of tasks ----


@pytest.mark.parametrize(
    "kind, args",
    [
        (ValueError, ()),
        (ValueError, (1, "two")),
        (KeyError, ("key",)),
        (FileNotFoundError, (2, "text", "file")),
        (UnicodeDecodeError, ("utf-8", b"\xff", 0, 1, "reason")),
        (StopIteration, (5,)),
        (MemoryError, ()),
        (TimeoutError, ("own",)),
        (SystemExit, ()),
        (SystemExit, (3,)),
        (KeyboardInterrupt, ()),
        (GeneratorExit, ()),
        (tasks.OwnBase, (1,)),
    ],
    ids=repr,
)
def test_exception(any_pool, kind, args):
    error = error_of(any_pool, tasks.fail, kind, *args)
    assert (type(error), error.args) == (kind, kind(*args).args)
    assert "tasks.py" in error.traceback and "in fail" in error.traceback


@pytest.mark.parametrize("code", [None, 0, 3, "text"])
def test_sys_exit(any_pool, code):
    error = error_of(any_pool, tasks.leave, code)
    assert isinstance(error, SystemExit) and error.code == code


def test_attributes(any_pool):
    assert error_of(any_pool, tasks.fail_with_attribute).code == 5


def test_recursion_error(any_pool):
    error = error_of(any_pool, tasks.recurse)
    assert isinstance(error, RecursionError)
    assert "recurse" in error.traceback


def test_wrong_arguments(any_pool):
    assert isinstance(error_of(any_pool, tasks.add), TypeError)


def test_a_large_message(any_pool):
    message = "x" * 3_000_000
    assert error_of(any_pool, tasks.fail, ValueError, message).args == (message,)


def test_a_message_that_is_no_unicode(any_pool):
    error = error_of(any_pool, tasks.fail, ValueError, "\udcff\0ü")
    assert error.args == ("\udcff\0ü",)
    assert "ValueError" in error.traceback


def test_an_exception_without_text(any_pool):
    error = error_of(any_pool, tasks.fail, tasks.Unprintable)
    assert isinstance(error, tasks.Unprintable)
    assert "Unprintable" in error.traceback


def test_an_exception_that_takes_no_attributes(any_pool):
    assert isinstance(error_of(any_pool, tasks.fail, tasks.Frozen), tasks.Frozen)


# ---- Tracebacks ----


def test_traceback(process_pool):
    error = error_of(process_pool, tasks.fail, ValueError, "message")
    assert isinstance(error.traceback, str)
    assert error.traceback.startswith("Traceback (most recent call last)")
    assert "raise kind(*args)" in error.traceback
    assert "ValueError: message" in error.traceback


def test_cause_shows_the_remote_traceback(process_pool):
    error = error_of(process_pool, tasks.fail, ValueError, "message")
    assert isinstance(error.__cause__, RemoteTraceback)
    assert error.traceback.strip() in str(error.__cause__)
    shown = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    assert "raise kind(*args)" in shown


def test_ctrl_c_while_the_traceback_is_attached(process_pool, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    future = process_pool.schedule(tasks.fail)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RemoteTraceback, "__init__", interrupted)
        future.result()
    assert isinstance(future.exception(), ValueError)
    assert isinstance(future.exception().__cause__, RemoteTraceback)


def test_remote_causes_are_in_the_traceback(process_pool):
    error = error_of(
        process_pool, tasks.fail_from, ValueError("effect"), KeyError("cause")
    )
    assert "effect" in error.traceback and "KeyError: 'cause'" in error.traceback


def test_traceback_of_a_thread(thread_pool):
    error = error_of(thread_pool, tasks.fail, ValueError, "message")
    assert "raise kind(*args)" in error.traceback
    assert "ValueError: message" in error.traceback
    assert error.__cause__ is None


def test_a_cause_in_a_thread_is_left_alone(thread_pool):
    effect, cause = ValueError("effect"), KeyError("cause")
    error = error_of(thread_pool, tasks.fail_from, effect, cause)
    assert error is effect and error.__cause__ is cause


def test_text_of_an_error_can_be_pickled(process_pool):
    error = error_of(process_pool, tasks.fail, ValueError, 1)
    assert pickle.loads(pickle.dumps(error)).traceback == error.traceback


# ---- Exceptions that cannot be pickled ----


def test_an_exception_with_two_arguments(process_pool):
    error = error_of(process_pool, tasks.fail, tasks.TwoArguments, 1, 2)
    assert isinstance(error, TypeError)
    assert "TwoArguments" in error.traceback and "in fail" in error.traceback


def test_an_exception_with_two_arguments_in_a_thread(thread_pool):
    error = error_of(thread_pool, tasks.fail, tasks.TwoArguments, 1, 2)
    assert isinstance(error, tasks.TwoArguments)


def test_a_local_exception(process_pool):
    error = error_of(process_pool, tasks.fail_locally)
    assert isinstance(error, UNPICKLABLE)
    assert "local" in str(error.__cause__)


def test_an_exception_that_fails_to_dump(process_pool):
    error = error_of(process_pool, tasks.fail, tasks.DumpFailsError)
    assert isinstance(error, ValueError) and error.args == ("dump",)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "DumpFailsError" in str(error.__cause__)


def assert_tells_of_both(error):
    assert type(error) is RuntimeError
    assert str(error).count("NeverDumped") == 2
    assert "in raise_never_dumped" in error.traceback and "NeverDumped" in error.traceback


def test_an_exception_of_which_not_even_the_reason_can_be_dumped(process_pool):
    assert_tells_of_both(error_of(process_pool, tasks.raise_never_dumped))


def test_a_result_of_which_not_even_the_reason_can_be_dumped(process_pool):
    assert_tells_of_both(error_of(process_pool, tasks.make, tasks.RaisesNeverDumped))


def test_elements_of_which_not_even_the_reason_can_be_dumped(process_pool):
    kinds = [tasks.Counter, tasks.RaisesNeverDumped]
    future = process_pool.map(tasks.make, kinds, [1, 2], chunksize=2)
    first, second = outcomes(future.result())
    assert first.start == 1
    assert_tells_of_both(second)


def test_an_exception_that_fails_to_load(process_pool):
    error = error_of(process_pool, tasks.fail, tasks.LoadFailsError)
    assert isinstance(error, LookupError) and error.args == ("load",)
    assert "LoadFailsError" in error.traceback


# ---- Results ----


def test_a_result_that_cannot_be_pickled(process_pool):
    assert isinstance(error_of(process_pool, tasks.make_lambda), UNPICKLABLE)


def test_a_result_that_fails_to_dump(process_pool):
    error = error_of(process_pool, tasks.make, tasks.DumpFails)
    assert isinstance(error, ValueError) and error.args == ("dump",)


def test_a_result_that_fails_to_load(process_pool):
    error = error_of(process_pool, tasks.make, tasks.LoadFails)
    assert isinstance(error, LookupError) and error.args == ("load",)


def test_a_result_nested_too_deeply(process_pool):
    assert isinstance(error_of(process_pool, tasks.make_nested, 100_000), RecursionError)


def test_results_of_threads_are_not_pickled(thread_pool):
    assert callable(thread_pool.schedule(tasks.make_lambda).result())


# ---- Functions and arguments ----


@pytest.mark.parametrize(
    "function", [lambda: None, (n for n in ()).__next__], ids=["lambda", "generator"]
)
def test_a_function_that_cannot_be_pickled(process_pool, function):
    assert isinstance(error_of(process_pool, function), UNPICKLABLE)


def test_an_argument_that_cannot_be_pickled(process_pool):
    assert isinstance(error_of(process_pool, tasks.value, lambda: None), UNPICKLABLE)


def test_a_keyword_argument_that_cannot_be_pickled(process_pool):
    future = process_pool.schedule(tasks.add, args=(1,), kwargs={"b": lambda: None})
    assert isinstance(future.exception(), UNPICKLABLE)


def test_an_argument_that_fails_to_dump(process_pool):
    error = error_of(process_pool, tasks.value, tasks.DumpFails())
    assert isinstance(error, ValueError) and error.args == ("dump",)


def test_an_argument_that_fails_to_load(process_pool):
    error = error_of(process_pool, tasks.value, tasks.LoadFails())
    assert isinstance(error, LookupError) and error.args == ("load",)
    assert "explode" in error.traceback


def test_an_argument_nested_too_deeply(process_pool):
    nested = tasks.make_nested(100_000)
    assert isinstance(error_of(process_pool, tasks.value, nested), RecursionError)


def test_a_callback_learns_of_it(process_pool):
    seen = []
    future = process_pool.schedule(tasks.value, args=(lambda: None,))
    future.exception(10)
    future.add_done_callback(lambda done: seen.append(done.exception()))
    assert seen == [future.exception()]


def test_tasks_around_it_are_performed():
    with ProcessPool(max_workers=1) as pool:
        arguments = [n if n % 3 else tasks.LoadFails() for n in range(30)]
        futures = [pool.schedule(tasks.value, args=(each,)) for each in arguments]
        for n, future in enumerate(futures):
            if n % 3:
                assert future.result() == n
            else:
                assert isinstance(future.exception(), LookupError)
