/* A worker takes the GIL with its first task and gives it up when it is idle, not between two tasks:
 * handing it over costs more than a short task. Its thread state is kept for as long as the worker
 * lives, so that threading.local works. The interpreter has threads take turns, and acts on signals,
 * between two steps of Python code: where there may be none for long, we do (interpreter_offer()).
 *
 * Forks. The program → its zygote → the workers; each is a fork of a Python process, so the handlers
 * of os.register_at_fork() run around both. The zygote runs no other Python code; its one thread has
 * the GIL for good.
 *
 * Ctrl-C. Only the main thread acts on signals. A signal that comes between its last look and its sleep
 * would be lost until something else wakes it (giving up the GIL may take long): so a handler of ours,
 * before Python's, sets a word that the engine sleeps on, too. And one that comes to another thread is
 * sent on to the main thread, which may wait in Python's own way.
 *
 * Exit. atexit sets `ending`; whoever comes later leaves Python alone. A thread that already waits
 * for the GIL then is ended by the interpreter (pthread_exit), which the engine copes with.
 */
#include "interpreter.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "deferred.h"

static atomic_bool ending;

static _Thread_local bool is_thread_worker;
static _Thread_local PyThreadState *parked;     /* a worker that does not have the GIL */
static _Thread_local PyGILState_STATE attached; /* a thread worker's */
static _Thread_local PyGILState_STATE forking;

static bool is_process_worker; /* one thread writes it, at its start */
static bool has_printed;
static bool is_executed_each; /* start method spawn */
static const char *problem_text;
static pid_t process;

static void note_process(void) {
    process = getpid();
}

static void forked(void) {
    note_process();
    deferred_forked();
}

int interpreter_note_process(void) {
    note_process();
    return pthread_atfork(NULL, NULL, forked);
}

pid_t interpreter_process(void) {
    return process;
}

bool interpreter_is_ending(void) {
    return atomic_load(&ending);
}

void interpreter_set_ending(void) {
    atomic_store(&ending, true);
}

/* ---- Output ---- */

static void flush_stream(const char *name) {
    PyObject *stream = PySys_GetObject(name);
    if (stream == NULL || stream == Py_None)
        return;
    Py_INCREF(stream);
    PyObject *done = PyObject_CallMethodNoArgs(stream, names.str_flush);
    if (done == NULL)
        PyErr_Clear();
    Py_XDECREF(done);
    Py_DECREF(stream);
}

void worker_note_output(void) {
    has_printed = true;
}

void worker_flush(void) {
    has_printed = false;
    flush_stream("stdout");
    flush_stream("stderr");
}

/* ---- The GIL ---- */

#define TURN_NS 5000000 /* the interpreter's own switch interval, unless it is set */

static _Thread_local int64_t turn_end_ns;

/* The clock that costs next to nothing, and is right to some milliseconds. */
static int64_t coarse_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return now.tv_sec * (int64_t)1000000000 + now.tv_nsec;
}

static void begin_turn(PyThreadState *state) {
    PyEval_RestoreThread(state);
    turn_end_ns = coarse_now_ns() + TURN_NS;
}

void interpreter_offer(void) {
    if (coarse_now_ns() >= turn_end_ns)
        begin_turn(PyEval_SaveThread());
}

int interpreter_look_up(void) {
    interpreter_offer();
    return PyErr_CheckSignals();
}

bool worker_enter(void) {
    if (interpreter_is_ending())
        return false;
    if (parked != NULL) {
        begin_turn(parked);
        parked = NULL;
    } else {
        interpreter_offer();
    }
    return true;
}

bool thread_enter(PyGILState_STATE *state) {
    if (interpreter_is_ending())
        return false;
    *state = PyGILState_Ensure();
    return true;
}

void thread_leave(PyGILState_STATE state) {
    PyGILState_Release(state);
}

static void worker_idle(void *context) {
    (void)context;
    if (parked != NULL || !(is_thread_worker || is_process_worker))
        return;
    if (is_process_worker && !is_thread_worker && has_printed)
        worker_flush();
    deferred_drain();
    parked = PyEval_SaveThread();
}

/* ---- Ctrl-C ---- */

/* Ends the main thread's wait. Python's own handler only notes that there was a signal, which nobody
 * sees who has not begun to sleep yet. */
static uint32_t interrupt_word;
static void (*pythons_handler)(int); /* in C: one for all signals; NULL: not known yet */

static void interrupt(int number, siginfo_t *info, void *context) {
    (void)info;
    (void)context;
    if (gettid() !=
        getpid()) { /* the main thread had it blocked, as while it starts a thread */
        tgkill(getpid(), getpid(), number);
        return;
    }
    pebble_interrupt(&interrupt_word);
    pythons_handler(number);
}

/* A signal that nobody has a use for, or 0. */
static int find_unused_signal(void) {
    struct sigaction action;
    for (int number = SIGRTMAX - 1; number > SIGRTMIN; number--) {
        if (sigaction(number, NULL, &action) == 0 && action.sa_handler == SIG_DFL)
            return number;
    }
    return 0;
}

/* SIGINT's handler may be another's that looks like Python's (faulthandler's, that of a library): so
 * Python is given a handler for a signal that nobody uses, for a moment. It takes one in its main thread
 * only. */
int interpreter_learn_handler(void) {
    static bool done;
    struct sigaction action;
    int number = !done && getpid() == gettid() ? find_unused_signal() : 0;
    if (number == 0)
        return 0;
    PyObject *module = PyImport_ImportModule("_signal"), *set = NULL, *unset = NULL;
    if (module != NULL)
        set = PyObject_CallMethod(module, "signal", "iO", number, names.loads);
    if (set != NULL && sigaction(number, NULL, &action) == 0)
        pythons_handler = action.sa_handler;
    if (set != NULL)
        unset = PyObject_CallMethod(module, "signal", "ii", number, 0); /* SIG_DFL */
    if (unset == NULL)
        signal(number, SIG_DFL);
    bool foreign = set == NULL && PyErr_ExceptionMatches(PyExc_ValueError);
    if (foreign) /* another is Python's main thread */
        PyErr_Clear();
    done = foreign || unset != NULL;
    Py_XDECREF(unset);
    Py_XDECREF(set);
    Py_XDECREF(module);
    return done ? 0 : -1;
}

/* Puts our handler before Python's, if SIGINT has that one. Whoever sets another removes ours: so it is
 * looked at before each wait. Another's stays, which may lead to Python's or to ours itself; it ends a
 * system call all the same. */
void interpreter_precede_handler(void) {
    struct sigaction action;
    if (pythons_handler == NULL || sigaction(SIGINT, NULL, &action) != 0 ||
        (action.sa_flags & SA_SIGINFO) != 0 || action.sa_handler != pythons_handler)
        return;
    action.sa_flags |= SA_SIGINFO;
    action.sa_sigaction = interrupt;
    sigaction(SIGINT, &action, NULL);
}

int interpreter_before_wait(void) {
    static uint32_t never_set;
    bool is_main = getpid() == gettid();
    pebble_set_interrupt_word(is_main ? &interrupt_word : &never_set);
    if (!is_main) /* handlers run in the main thread alone */
        return 0;
    __atomic_store_n(&interrupt_word, 0, __ATOMIC_SEQ_CST);
    if (interpreter_learn_handler() < 0)
        return -1;
    interpreter_precede_handler();
    return PyErr_CheckSignals();
}

/* ---- Workers ---- */

/* Calls a function of pebble._worker; name may be NULL. What it raises is printed: there is nobody
 * to tell. */
static void call_worker_module(const char *function, PyObject *name) {
    static PyObject *module; /* never given back: it is the package's */
    if (module == NULL)
        module = PyImport_ImportModule("pebble._worker");
    PyObject *method = module != NULL ? PyUnicode_FromString(function) : NULL;
    PyObject *done = NULL;
    if (method != NULL)
        done = PyObject_CallMethodObjArgs(module, method, name, NULL);
    if (done == NULL)
        PyErr_WriteUnraisable(NULL);
    Py_XDECREF(done);
    Py_XDECREF(method);
}

/* ---- Forks ---- */

static void before_fork(void *context, pebble_fork_kind kind) {
    (void)context;
    if (kind == PEBBLE_FORK_ZYGOTE)
        forking = PyGILState_Ensure();
    PyOS_BeforeFork();
}

static void after_fork_parent(void *context, pebble_fork_kind kind) {
    (void)context;
    PyOS_AfterFork_Parent();
    if (kind == PEBBLE_FORK_ZYGOTE)
        PyGILState_Release(forking);
}

static void after_fork_child(void *context, pebble_fork_kind kind) {
    (void)context;
    is_thread_worker = is_process_worker = false;
    parked = NULL;
    atomic_store(&ending, false);
    PyOS_AfterFork_Child();
    if (kind == PEBBLE_FORK_ZYGOTE)
        call_worker_module("prepare_workers", NULL);
}

/* ---- Starting and ending ---- */

static void call_with_name(const char *function, const char *name) {
    PyObject *string = PyUnicode_DecodeUTF8(name, (Py_ssize_t)strlen(name), "replace");
    if (string != NULL)
        call_worker_module(function, string);
    else
        PyErr_Clear();
    Py_XDECREF(string);
}

void worker_rename(PyObject *name) {
    call_worker_module("rename_process", name);
}

static void process_start(const char *name) {
    signal(SIGPIPE, SIG_IGN); /* as in every Python process */
    signal(SIGXFSZ, SIG_IGN);
    is_process_worker = true;
    call_with_name("start_process", name);
}

static void thread_start(const char *name) {
    if (interpreter_is_ending())
        return;
    attached = PyGILState_Ensure();
    is_thread_worker = true;
    call_with_name("start_thread", name);
}

static void worker_start(void *context, const char *name) {
    if (context != NULL)
        process_start(name);
    else
        thread_start(name);
}

static void worker_end(void *context) {
    if (!worker_enter()) {
        if (is_thread_worker && parked == NULL)
            PyEval_SaveThread(); /* it has come to the GIL after the interpreter began to end */
        return;
    }
    if (context != NULL) {
        call_worker_module(is_executed_each ? "end_executed" : "end_process", NULL);
    } else if (is_thread_worker) {
        call_worker_module("end_thread", NULL);
        deferred_drain();
        is_thread_worker = false;
        PyGILState_Release(attached);
    }
}

static char process_context;

const pebble_hooks process_hooks = {
    .struct_size = sizeof(pebble_hooks),
    .context = &process_context,
    .before_fork = before_fork,
    .after_fork_parent = after_fork_parent,
    .after_fork_child = after_fork_child,
    .worker_start = worker_start,
    .worker_end = worker_end,
    .worker_idle = worker_idle,
};

/* The zygote of a single call runs nothing of Python: for the interpreter the two forks are one. */

static void before_single_fork(void *context, pebble_fork_kind kind) {
    if (kind == PEBBLE_FORK_ZYGOTE)
        before_fork(context, kind);
}

static void after_single_fork_parent(void *context, pebble_fork_kind kind) {
    if (kind == PEBBLE_FORK_ZYGOTE)
        after_fork_parent(context, kind);
}

static void after_single_fork_child(void *context, pebble_fork_kind kind) {
    if (kind == PEBBLE_FORK_WORKER)
        after_fork_child(context, kind);
}

const pebble_hooks single_process_hooks = {
    .struct_size = sizeof(pebble_hooks),
    .context = &process_context,
    .before_fork = before_single_fork,
    .after_fork_parent = after_single_fork_parent,
    .after_fork_child = after_single_fork_child,
    .worker_start = worker_start,
    .worker_end = worker_end,
    .worker_idle = worker_idle,
};

const pebble_hooks thread_hooks = {
    .struct_size = sizeof(pebble_hooks),
    .worker_start = worker_start,
    .worker_end = worker_end,
    .worker_idle = worker_idle,
};

void interpreter_serve(const char *problem, bool executed_each) {
    problem_text = problem;
    is_executed_each = executed_each;
    pebble_worker_main_hooks(&process_hooks);
}

const char *interpreter_problem(void) {
    return problem_text;
}
