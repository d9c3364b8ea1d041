/* Tasks given to a worker, taken back, cancelled, timed out, and a worker that dies at any step.
 *
 * A slot of a worker's ring holds a word: seq << 2 | state, changed by CAS only:
 *   QUEUED -> RUNNING    worker, before it runs the task; it stays so when the task has ended
 *   QUEUED -> WITHDRAWN  parent: taken back (to another worker) or cancelled
 * The worker publishes a result before it claims the next task, and its head behind each task.
 * A slot is written again only when that head is past it.
 *
 * To stop a running task the parent first withdraws all else from its worker. If something is
 * left, it has started, so that the task to be stopped has ended: nothing is killed. Else the
 * worker can start nothing more, gets nothing more, and is killed.
 * At a worker's death (seen when the process is gone) the parent drains the results; then what is
 * QUEUED goes back to the queue, what is RUNNING expires, or ends for the reason of its stop.
 *
 * What parent threads do under the pool's lock is atomic here; a worker may be killed between any
 * two statements. Shown: each task ends exactly once; it is never started twice; one cancelled
 * before its start never starts, one taken back not at that worker; a result means that it ran to
 * its end once; a task expires only if its own worker crashed while it was the running one (a
 * kill meant for another task never costs it); a death costs at most one task.
 * run checks that each of these fails:
 *   NO_CAS        the worker loads the word, then stores RUNNING
 *   NO_DRAIN      the results of a dead worker are not looked at
 *   REQUEUE_ALL   the task that ran is given to another worker as well
 *   LATE_PUBLISH  the worker claims the next task before it publishes a result
 *   BLIND_KILL    the parent kills the worker of a task that runs without withdrawing the rest:
 *                 the worker may have gone on to the next task by then
 *   EARLY_REUSE   withdrawn tasks do not count when the parent looks for room in the ring
 */
#define WORKERS 2
#define RING 2

/* So many disturbances in one run, of any kind: crashes, tasks taken back, cancels, timeouts. */
#ifdef MORE_DISTURBANCES
#define TASKS 2
#define DISTURBANCES 3
#else
#define TASKS 3
#define DISTURBANCES 2
#endif

#define QUEUED 0
#define RUNNING 1
#define WITHDRAWN 2
#define WORD(seq, state) ((seq) * 4 + (state))
#define STATE(word) ((word) & 3)
#define SEQ(word) ((word) / 4)
#define AT(w, seq) ((w) * RING + (seq) % RING)

mtype = {none, result, cancelled, timed_out, expired};

/* The channels. Sequences begin at 1, so that 0 is the word of a slot never written. */
byte word[WORKERS * RING];
byte task_in[WORKERS * RING];
byte head[WORKERS]; /* by the worker: it is past all below */
chan results[WORKERS] = [RING + 1] of {byte};

/* The processes. */
bool alive[WORKERS], gone[WORKERS], kill_sent[WORKERS];

/* The parent's own. */
byte tail[WORKERS];     /* the next seq to write */
byte where[TASKS];      /* 0: in the queue; w + 1: given to worker w */
byte seq_of[TASKS];     /* if given */
mtype reason[TASKS];    /* why its worker is being killed, or none */
mtype outcome[TASKS];
byte given_up_to;       /* the tasks below have been given to a worker once, or cancelled */

/* Ghosts. */
bool crashed[WORKERS], started[TASKS], finished[TASKS], not_to_start[TASKS];
byte disturbances;

/* Parts of larger atomic sequences. */
inline end_task(t, how) {
    assert(outcome[t] == none);
    outcome[t] = how;
    where[t] = 0;
    assert(how != result || (started[t] && finished[t]))
}

inline open_channel(w) {
    for (i : 0 .. RING - 1) { word[w * RING + i] = 0; task_in[w * RING + i] = 0 };
    head[w] = 1;
    tail[w] = 1;
    gone[w] = false;
    kill_sent[w] = false;
    crashed[w] = false;
    alive[w] = true
}

#ifdef EARLY_REUSE
#define IN_SLOT(w) word[AT(w, tail[w])]
#define ROOM(w) (!kill_sent[w] && (tail[w] - head[w] < RING || STATE(IN_SLOT(w)) == WITHDRAWN))
#else
#define ROOM(w) (!kill_sent[w] && tail[w] - head[w] < RING)
#endif

/* Tasks are alike, and workers: that tasks are first given in order, and the first one to worker
 * 0, saves equivalent runs. */
#define IS_NEXT(t) (t <= given_up_to)

#define SLOT_OF(t) AT(where[t] - 1, seq_of[t])
#define GIVEN(t, state) (where[t] > 0 && word[SLOT_OF(t)] == WORD(seq_of[t], state))

inline give(t, w) {
    if
    :: t == given_up_to -> given_up_to++
    :: else
    fi;
    task_in[AT(w, tail[w])] = t;
    word[AT(w, tail[w])] = WORD(tail[w], QUEUED);
    seq_of[t] = tail[w];
    where[t] = w + 1;
    tail[w] = tail[w] + 1
}

/* Of a task whose slot says that it runs; it may have ended by now. */
inline stop_running(t, why) {
    left = 0;
    for (i : 0 .. TASKS - 1) {
        if
        :: i != t && where[i] == where[t] ->
#ifdef BLIND_KILL
            skip
#else
            if
            :: GIVEN(i, QUEUED) -> word[SLOT_OF(i)] = WORD(seq_of[i], WITHDRAWN); where[i] = 0
            :: else -> left++
            fi
#endif
        :: else
        fi
    };
    if
    :: left == 0 -> reason[t] = why; kill_sent[where[t] - 1] = true
    :: else /* the collector will end it */
    fi;
    i = 0;
    left = 0
}

init {
    byte i, n;
    atomic {
        for (n : 0 .. TASKS - 1) { reason[n] = none; outcome[n] = none };
        for (n : 0 .. WORKERS - 1) { open_channel(n) };
        for (n : 0 .. WORKERS - 1) { run worker(n); run supervisor(n) };
        for (n : 0 .. TASKS - 1) { run caller(n) };
        run killer();
        i = 0; n = 0
    }
}

proctype worker(byte me) {
    byte next, seen, task;
    do
    :: true ->
        {
            next = 1;
end_idle:
            do
            :: SEQ(word[AT(me, next)]) == next ->
                d_step { seen = word[AT(me, next)]; task = task_in[AT(me, next)] };
                if
#ifdef NO_CAS
                :: STATE(seen) == QUEUED ->
                    word[AT(me, next)] = WORD(next, RUNNING);
#else
                :: STATE(seen) == QUEUED && word[AT(me, next)] != seen -> goto skip_it
                :: d_step {
#ifdef LATE_PUBLISH
                       STATE(seen) != WITHDRAWN && word[AT(me, next)] == seen ->
#else
                       STATE(seen) == QUEUED && word[AT(me, next)] == seen ->
#endif
                       word[AT(me, next)] = WORD(next, RUNNING)
                   }
#endif
                    d_step {
                        assert(!started[task] && !not_to_start[task]);
                        started[task] = true
                    };
                    d_step { finished[task] = true; task = 0 };
#ifdef LATE_PUBLISH
                    if
                    :: d_step {
                           word[AT(me, next + 1)] == WORD(next + 1, QUEUED) ->
                           word[AT(me, next + 1)] = WORD(next + 1, RUNNING)
                       }
                    :: word[AT(me, next + 1)] != WORD(next + 1, QUEUED)
                    fi;
#endif
                    results[me]!next
                :: STATE(seen) == WITHDRAWN -> skip
                fi;
skip_it:
                skip;
                d_step { next++; head[me] = next; seen = 0; task = 0 }
            od
        } unless { !alive[me] };
        d_step { next = 0; seen = 0; task = 0; gone[me] = true };
end_until_replaced:
        !gone[me]
    od
}

/* Ends workers: by a crash of their own at any time, or the kill that the parent has sent. */
proctype killer() {
    byte w;
end:
    do
    :: d_step {
        disturbances < DISTURBANCES && alive[0] ->
        disturbances++;
        crashed[0] = true;
        alive[0] = false
       }
    :: d_step {
        disturbances < DISTURBANCES && alive[1] ->
        disturbances++;
        crashed[1] = true;
        alive[1] = false
       }
    :: d_step { kill_sent[0] && alive[0] -> alive[0] = false }
    :: d_step { kill_sent[1] && alive[1] -> alive[1] = false }
    od
}

/* The parent's threads, for one task: it goes to any worker with room, may be taken back from
 * one, cancelled, and timed out while it runs. */
proctype caller(byte t) {
    byte i, left;
    do
    :: outcome[t] != none -> break
    :: d_step {
        outcome[t] == none && where[t] == 0 && IS_NEXT(t) && ROOM(0) ->
        give(t, 0)
       }
    :: d_step {
        outcome[t] == none && where[t] == 0 && IS_NEXT(t) && given_up_to > 0 && ROOM(1) ->
        give(t, 1)
       }
    :: d_step {
        GIVEN(t, QUEUED) && disturbances < DISTURBANCES ->
        disturbances++;
        word[SLOT_OF(t)] = WORD(seq_of[t], WITHDRAWN);
        where[t] = 0
       }
    :: d_step {
        outcome[t] == none && IS_NEXT(t) && (where[t] == 0 || GIVEN(t, QUEUED)) &&
            disturbances < DISTURBANCES ->
        disturbances++;
        if
        :: where[t] > 0 -> word[SLOT_OF(t)] = WORD(seq_of[t], WITHDRAWN)
        :: else
        fi;
        not_to_start[t] = true;
        if
        :: t == given_up_to -> given_up_to++
        :: else
        fi;
        end_task(t, cancelled)
       }
    :: d_step {
        GIVEN(t, RUNNING) && reason[t] == none && disturbances < DISTURBANCES ->
        disturbances++;
        stop_running(t, cancelled)
       }
    :: d_step {
        GIVEN(t, RUNNING) && reason[t] == none && disturbances < DISTURBANCES ->
        disturbances++;
        stop_running(t, timed_out)
       }
    od
}

inline collect(w, seq) {
    for (t : 0 .. TASKS - 1) {
        if
        :: where[t] == w + 1 && seq_of[t] == seq && reason[t] == none -> end_task(t, result)
        :: else /* being stopped: its death ends it */
        fi
    }
}

/* The parent's supervisor, for one worker. */
proctype supervisor(byte w) {
    byte t, i, seq, lost;
end:
    do
    :: d_step { results[w]?seq -> collect(w, seq); t = 0; seq = 0 }
    :: d_step {
        gone[w] ->
        do
        :: results[w]?seq ->
#ifndef NO_DRAIN
            collect(w, seq)
#else
            skip
#endif
        :: empty(results[w]) -> break
        od;
        for (t : 0 .. TASKS - 1) {
            if
            :: where[t] == w + 1 && reason[t] != none -> end_task(t, reason[t])
#ifdef REQUEUE_ALL
            :: where[t] == w + 1 && reason[t] == none && outcome[t] == none -> where[t] = 0
#else
            :: where[t] == w + 1 && reason[t] == none && GIVEN(t, QUEUED) -> where[t] = 0
            :: where[t] == w + 1 && reason[t] == none && GIVEN(t, RUNNING) ->
                lost++;
                assert(crashed[w] && lost == 1);
                end_task(t, expired)
#endif
            :: else
            fi
        };
        open_channel(w);
        t = 0; i = 0; seq = 0; lost = 0
       }
    od
}
