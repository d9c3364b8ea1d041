/* The program sleeps until a worker has ended the task S: it is never left asleep.
 *
 * The program arms `event_at` with S: ring my bell once task S, or a later one, has ended. It may
 * arm any value at any time: one long ended, a lower one than before (a new waiter that wants an
 * earlier task), a higher one, or NEVER. The worker rings at most once for each value, so that a
 * stream of results costs no system calls. The bell is an eventfd, edge triggered: rings merge,
 * and one may come late, for a value armed before (src/channel/worker_end.c, ring_if_wanted).
 *
 * The numbers must never come round: a value armed again after 2^n tasks would not ring.
 *
 * Store buffers as in doorbell.pml. run checks that each of these fails:
 *   NO_WORKER_FENCE, NO_PROGRAM_FENCE  a fence left out
 *   RING_ONCE_EVER  rings once instead of once for each value
 *   NO_CHECK        the program sleeps without a look at what has ended since it armed
 */
#define TASKS 4
#define WAITS 4
#define NEVER 255

byte ended;            /* by the worker: so many tasks have ended */
byte event_at = NEVER; /* by the program */
bool bell;             /* the eventfd's edge, not yet seen by the program */

byte rings, arms; /* ghosts */

chan worker_buffer = [2] of {byte};
chan program_buffer = [2] of {byte};

active proctype worker_drain() {
end:
    do
    :: atomic { worker_buffer?ended }
    od
}

active proctype program_drain() {
end:
    do
    :: atomic { program_buffer?event_at }
    od
}

active proctype worker() {
    byte done, wanted, rung_for = NEVER;

    do
    :: done == TASKS -> break
    :: else ->
        done++;
        worker_buffer!done; /* store-release */
#ifndef NO_WORKER_FENCE
        empty(worker_buffer); /* seq_cst fence */
#endif
        wanted = event_at;
        if
#ifdef RING_ONCE_EVER
        :: wanted < done && rung_for == NEVER ->
#else
        :: wanted < done && wanted != rung_for ->
#endif
            rung_for = wanted;
            atomic { bell = true; rings++ }
        :: else
        fi
    od
}

active proctype program() {
    byte waits, wanted;

    do
    :: waits == WAITS -> break
    :: else ->
        waits++;
        if
        :: program_buffer!NEVER /* nobody waits for a while */
        :: true
        fi;
        select (wanted : 0 .. TASKS - 1);
arm:
        atomic { program_buffer!wanted; arms++ };
#ifndef NO_PROGRAM_FENCE
        empty(program_buffer); /* seq_cst fence */
#endif
        do
#ifdef NO_CHECK
        :: true ->
#else
        :: ended > wanted -> break
        :: ended <= wanted ->
#endif
            atomic { bell -> bell = false }; /* epoll_wait */
            if /* perhaps a ring for an older value: look again, or want another now */
            :: ended > wanted -> break
            :: ended <= wanted
            :: waits < WAITS -> waits++; select (wanted : 0 .. TASKS - 1); goto arm
            fi
        od
    od;
    assert(rings <= arms)
}
