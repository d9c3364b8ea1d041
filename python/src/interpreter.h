/* The interpreter's lock (GIL), forks and exit, as the engine's threads and processes meet them. */
#ifndef PEBBLE_PYTHON_INTERPRETER_H
#define PEBBLE_PYTHON_INTERPRETER_H

#include "engine.h"

extern const pebble_hooks process_hooks;
extern const pebble_hooks single_process_hooks; /* of concurrent.process under fork */
extern const pebble_hooks thread_hooks;

/* Once, before interpreter_process(): 0 or an errno. */
int interpreter_note_process(void);

/* getpid() without its system call. */
pid_t interpreter_process(void);

/* In the main thread, the first time: finds out which handler of signals is Python's. -1 with an
 * exception. */
int interpreter_learn_handler(void);

/* Puts our handler of SIGINT before Python's, if that is the one: where threads are started or the end
 * of futures is waited for. */
void interpreter_precede_handler(void);

/* To be called with the GIL before a wait, which is then ended by Ctrl-C, be it pressed at any moment
 * from here on. -1 with an exception: a signal's handler raised it. */
int interpreter_before_wait(void);

/* With the GIL: lets others have it, if this thread has had its turn. For loops that may come through
 * no Python code for long; all that they rely on is then to be theirs, as in a call of Python code. */
void interpreter_offer(void);

/* The same, and runs the handlers of signals. -1 with an exception: one raised it. */
int interpreter_look_up(void);

/* In a worker, process or thread: has the GIL from now on until it is idle. False: the interpreter
 * is ending, nothing of Python may be touched. Without the GIL. */
bool worker_enter(void);

/* For a thread of the engine that is no worker. False as above; else leave with thread_leave(). */
bool thread_enter(PyGILState_STATE *state);
void thread_leave(PyGILState_STATE state);

/* The interpreter is ending: from now on no thread of the engine takes the GIL any more. */
void interpreter_set_ending(void);
bool interpreter_is_ending(void);

/* Gives the worker process another name than the engine did, which cuts it. */
void worker_rename(PyObject *name);

/* In a worker process: something may have been printed since the last flush. */
void worker_note_output(void);
void worker_flush(void);

/* Serves the pool that executed this process; returns only if none did. problem: why this process is
 * of no use, or NULL. */
void interpreter_serve(const char *problem, bool executed_each);
const char *interpreter_problem(void);

#endif
