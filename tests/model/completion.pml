/* A future ends exactly once, whoever comes, and whoever waits for its end learns of it.
 *
 * The future's word (src/core/future.h) holds a state and flags. Who may end it is settled before,
 * by taking the task out of the pool's tables under the pool's lock (an atomic step here; in a
 * thread pool a compare-and-swap out of QUEUED); then comes the outcome, then one exchange of the
 * word to an ended state, which returns the flags:
 *   WAITERS    set by a thread before it sleeps on the word. It sleeps only if the word is still
 *              what it saw
 *   ANY        set by a thread that waits for any of several; it sleeps on a common word
 *   CALLBACKS  set before a callback is pushed to the list, which who ends the future takes and
 *              closes. Who finds the future ended or the list closed calls it himself
 * All other changes of the word carry the flags along.
 *
 * Who comes: a result, the deadline, a cancel and a stop (while queued: at once; while it runs:
 * STOPPING, then the worker is killed, and its end ends the future), a death of the worker.
 *
 * Shown: one end; after a cancel that returned true the outcome is cancelled; the outcome is in
 * place when the end is seen; no waiter is left asleep; each callback is called once.
 * With SEVERAL, the waiters are one for any of several futures and two that add callbacks.
 * run checks that each of these fails:
 *   PLAIN_STOPPING  STOPPING is stored without care for the flags
 *   PLAIN_END       the flags are read, then the end is stored: no exchange
 *   NO_TABLES       who ends it looks at the state only
 *   NO_COMPARE      a futex that sleeps without comparing the word
 *   RESULT_WINS     a result ends a future that is being stopped
 *   END_FIRST       the end is published before the outcome
 *   SEVERAL_NO_ANY_COUNT  with SEVERAL: the common word is not changed before the wake
 */
#ifdef SEVERAL_NO_ANY_COUNT
#define SEVERAL
#endif

#define QUEUED 0
#define STOPPING 2
#define ENDED 4
#define WAITERS 8
#define ANY 16
#define CALLBACKS 32
#define STATE(w) ((w) & 7)
#define FLAGS(w) ((w) & 56)

mtype = {none, result, cancelled, timed_out, expired};

byte word;
byte any_word;
bool asleep[2], any_asleep;  /* the kernel's queues of word and any_word */
mtype outcome = none, reason = none;
bool in_tables = true, given; /* under the pool's lock; given: to a worker */
bool started, published, killed, dead; /* the worker's */
bool promised;               /* ghost: a cancel returned true */
byte ends;                   /* ghost */
byte list, called, runs;     /* callbacks: in the list, called; turns of the library's thread */
bool closed;                 /* the list */

/* When all is over. First, since spin removes processes last in, first out. */
active proctype verdict() {
    _nr_pr == 1;
    assert(ends == 1 && STATE(word) == ENDED);
    assert(!promised || outcome == cancelled);
    assert(outcome != result || published);
    assert(outcome != expired || !published);
#ifdef SEVERAL
    assert(called == 2)
#endif
}

inline run_callbacks() {
    d_step { called = called + list; list = 0; closed = true } /* the exchange of the list */
}

/* future_end(), after the task was taken out of the tables. */
inline end_future(how) {
#ifndef END_FIRST
    assert(outcome == none);
    outcome = how;
#endif
#ifdef PLAIN_END
    before = word;
    atomic { word = ENDED; ends++ };
#else
    d_step { before = word; word = ENDED; ends++ };
#endif
#ifdef END_FIRST
    outcome = how;
#endif
    if
    :: before & WAITERS -> d_step { asleep[0] = false; asleep[1] = false }
    :: else
    fi;
    if
    :: before & ANY ->
#ifndef SEVERAL_NO_ANY_COUNT
        any_word++;
#endif
        any_asleep = false
    :: else
    fi;
    if
    :: before & CALLBACKS -> run_callbacks()
    :: else
    fi;
    before = 0
}

#ifdef NO_TABLES
#define TAKE_OUT skip
#define TAKEN_OUT (STATE(word) == ENDED)
#else
#define TAKE_OUT in_tables = false
#define TAKEN_OUT (!in_tables)
#endif

/* Under the lock: from now on only the death of the worker ends the future. */
inline begin_stopping(why) {
    reason = why;
    killed = true;
#ifndef PLAIN_STOPPING
    word = FLAGS(word) | STOPPING
#endif
}

active proctype dispatcher() {
    if
    :: atomic { !TAKEN_OUT && STATE(word) == QUEUED -> given = true }
    :: atomic { TAKEN_OUT } /* cancelled in the queue */
    fi
}

/* Ends the task, crashes or is killed, at any time. It is gone at last, so that a future without
 * an end can only be the program's fault; with no kill, it may live on after its result. */
active proctype worker() {
    if
    :: given ->
        if
        :: published = true
        :: true
        fi;
        dead = true
    :: !given && TAKEN_OUT
    fi
}

/* pebble_future_cancel(); without SEVERAL, in a second thread, pebble_pool_stop(). */
#ifdef SEVERAL
#define CANCELLERS 1
#else
#define CANCELLERS 2
#endif
active [CANCELLERS] proctype canceller() {
    byte before;
    if
    :: atomic { !TAKEN_OUT && !given -> TAKE_OUT; promised = true };
        end_future(cancelled)
    :: atomic {
        !TAKEN_OUT && given && reason == none ->
        promised = true;
        begin_stopping(cancelled)
       };
#ifdef PLAIN_STOPPING
        before = word;
        word = STOPPING
#endif
    :: atomic { !TAKEN_OUT && reason == cancelled -> promised = true }
    :: atomic { TAKEN_OUT || reason == timed_out } /* returns false */
    fi
}

/* The supervisor at the deadline. */
active proctype deadline() {
    if
    :: atomic { !TAKEN_OUT && given && reason == none -> begin_stopping(timed_out) }
    :: atomic { TAKEN_OUT || reason != none }
    fi
}

/* Whoever takes the result from the channel: a waiter, or the supervisor. */
active proctype collector() {
    byte before;
    if
#ifdef RESULT_WINS
    :: atomic { published && !TAKEN_OUT -> TAKE_OUT };
#else
    :: atomic { published && !TAKEN_OUT && reason == none -> TAKE_OUT };
#endif
        end_future(result)
    :: atomic { TAKEN_OUT || reason != none || dead }
    fi
}

/* The supervisor at the worker's death: the results are drained first. */
active proctype death() {
    byte before;
    mtype how;
    if
    :: atomic { dead && !TAKEN_OUT -> TAKE_OUT };
        if
        :: reason != none -> how = reason
        :: reason == none && published -> how = result
        :: reason == none && !published -> how = expired
        fi;
        end_future(how)
    :: atomic { TAKEN_OUT }
    fi
}

/* future_set_bit(): ok is false if the future has ended. */
inline set_flag(flag) {
    do
    :: w = word;
        if
        :: STATE(w) == ENDED -> ok = false; break
        :: else ->
            d_step {
                if
                :: word == w -> word = w | flag; ok = true
                :: else -> ok = false
                fi
            };
            if
            :: ok -> break
            :: else
            fi
        fi
    od
}

#ifndef SEVERAL

/* future_sleep() in two threads; the second may come to its timeout. */
#define FIRST_WAITER_PID 8
active [2] proctype waiter() {
    byte w;
    bool ok;
    do
    :: set_flag(WAITERS);
        if
        :: !ok -> break
        :: ok ->
            w = word;
            if
            :: STATE(w) == ENDED
            :: else ->
#ifdef NO_COMPARE
                asleep[_pid - FIRST_WAITER_PID] = true;
#else
                d_step { asleep[_pid - FIRST_WAITER_PID] = (word == w) }; /* FUTEX_WAIT */
#endif
                if
                :: !asleep[_pid - FIRST_WAITER_PID]
                :: _pid != FIRST_WAITER_PID -> goto gone /* the flag stays behind */
                fi
            fi
        fi
    od;
    assert(outcome != none);
gone:
    skip
}

#else

/* pebble_future_wait_any(). */
active proctype any_waiter() {
    byte w, seen;
    bool ok;
    set_flag(ANY);
    do
    :: seen = any_word;
        if
        :: STATE(word) == ENDED -> break
        :: else ->
            d_step { any_asleep = (any_word == seen) };
            !any_asleep
        fi
    od;
    assert(outcome != none)
}

/* pebble_future_add_callback(). */
active [2] proctype adder() {
    byte w;
    bool ok;
    if
    :: STATE(word) == ENDED -> d_step { called++ } /* at once, in this thread */
    :: else ->
        set_flag(CALLBACKS);
        atomic {
            if
            :: ok && !closed -> list++ /* the compare-and-swap of the list */
            :: else -> called++
            fi
        }
    fi
}

#endif
