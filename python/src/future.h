/* Futures: the base of pebble.ProcessFuture and of what thread pools give, which inherit from this
 * type and from concurrent.futures.Future. */
#ifndef PEBBLE_PYTHON_FUTURE_H
#define PEBBLE_PYTHON_FUTURE_H

#include "deferred.h"
#include "engine.h"
#include "outcome.h"

typedef enum future_kind {
    FUTURE_PLAIN, /* made by a user: concurrent.futures.Future's methods do all */
    FUTURE_TASK,
    FUTURE_MAP /* a map_future, see map.h */
} future_kind;

/* Threads: the call, until it runs. args alone: the call that a forked process inherits. */
typedef struct future_call {
    PyObject *function, *args, *kwargs;
    deferred deferred; /* the task's reference to the future, whose this is */
} future_call;

/* As concurrent.futures has them in each future. */
typedef struct future_audience {
    PyObject *condition, *waiters, *callbacks;
    PyObject *state; /* PLAIN: as concurrent.futures sets it */
} future_audience;

/* Who is told of an end: those who wait in wait() and as_completed(), and done-callbacks, which may block:
 * each by a thread of the engine of its own. */
typedef enum future_lane { WAITERS, CALLBACKS, LANES } future_lane;

typedef struct future_object {
    PyObject_HEAD uint8_t kind;
    bool in_thread; /* TASK: of a thread pool, which leaves the outcome here before the end */
    bool known;     /* TASK: outcome or was_cancelled is final */
    bool was_cancelled;
    bool cancel_accepted;  /* cancel() returned True */
    bool marked_running;   /* set_running_or_notify_cancel() returned True */
    bool watched[LANES];   /* the engine will call back at the end */
    bool announced[LANES]; /* they have been told, or are being told */
    bool told;     /* _state tells of the end; with a condition it changes under that */
    pid_t pid;     /* once known */
    pid_t watcher; /* the process whose engine was asked to call back, or 0 */
    pebble_future *engine; /* NULL once it is known, and if it never ran */
    outcome outcome;
    future_call *call;         /* or NULL */
    future_audience *audience; /* NULL until somebody asks for what is in it */
} future_object;

extern PyType_Spec future_spec;

extern const future_audience future_nobody;

/* To look at. */
static inline const future_audience *future_audience_of(const future_object *self) {
    return self->audience != NULL ? self->audience : &future_nobody;
}

/* To change. NULL with an exception. */
future_audience *future_audience_make(future_object *self);

/* Makes it the future of a call. -1 with an exception. */
int future_set_call(future_object *self, PyObject *function, PyObject *args,
                    PyObject *kwargs);

/* Gives up what it holds: it has run, or will not. */
void call_clear(future_call *call);

/* For subtypes. */
int future_traverse(PyObject *self, visitproc visit, void *arg);
int future_clear(PyObject *self);
void future_fini(PyObject *self); /* for their dealloc */

/* A future of a task; takes the engine's. NULL with an exception. */
future_object *task_future_new(PyTypeObject *type, pebble_future *engine);

/* A future that has ended with the exception that is set. NULL with an exception: that one must not be
 * kept from the caller (KeyboardInterrupt). */
PyObject *task_future_new_failed(PyTypeObject *type);

/* What is true of it now; a map: of all its elements. */
bool future_has_ended(future_object *self);
bool future_is_cancelled(future_object *self);
bool future_is_running(future_object *self);

/* Of a task that has ended: makes its outcome known. -1 with an exception that is the caller's. */
int future_become_known(future_object *self);

/* Waits for the end of a task and makes it known. 0, or -1 with an exception: TimeoutError,
 * CancelledError, what else concerns the caller. */
int future_wait_known(future_object *self, PyObject *timeout);

/* Has the engine tell them of the end; tells them at once if it has ended. -1 with an exception. */
int future_watch(future_object *self, future_lane lane);

/* pebble_future_add_waker() or pebble_future_add_callback(). */
pebble_error engine_tell(pebble_future *engine, future_lane lane,
                         pebble_callback callback, void *context);

/* Calls a done-callback. An Exception is logged; -1 with any other, as in concurrent.futures. */
int future_call_back(future_object *self, PyObject *callback);

/* Waits for the engine's future, interruptibly. 1: ended, 0: deadline, -1 with an exception. */
int engine_wait(pebble_future *engine, int64_t deadline_ns);

/* Everything has ended: tells waiters, and then, in their lane, callbacks. Any thread, with the GIL.
 * All are told; -1 with the first exception: if this runs in a call, it is the caller's. */
int future_announce(future_object *self, future_lane lane);

/* The same in a thread of the engine, where nobody else is there to take an exception: it is logged. */
void future_announce_alone(future_object *self, future_lane lane);

#endif
