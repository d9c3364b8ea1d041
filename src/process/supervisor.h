/* The supervisor: one thread for all process pools of a program. It waits, in epoll, for the
 * bells of workers, the words of zygotes, the ends of processes and exact deadlines, and never
 * for anything else; while nothing happens it sleeps. It starts with the first pool and stays.
 *
 * Sources and timers belong to a pool, whose owner adds and removes them. Callbacks run in the
 * supervisor's thread without locks. A source that is removed in that thread is reported no more;
 * its memory must stay until supervisor_retire() has been called for what holds it: events of the
 * same round may still point there.
 */
#ifndef PEBBLE_PROCESS_SUPERVISOR_H
#define PEBBLE_PROCESS_SUPERVISOR_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "platform/platform.h"

/* Something with a descriptor. */
typedef struct supervisor_source {
    void (*ready)(struct supervisor_source *source, const os_poller_event *event);
    int fd; /* -1: removed */
} supervisor_source;

/* A deadline. */
typedef struct supervisor_timer {
    void (*expired)(struct supervisor_timer *timer);
    _Atomic int64_t deadline_ns; /* OS_NO_DEADLINE: not set. Others may look at it */
    size_t place;                /* in the heap, from 1; 0: not in it */
} supervisor_timer;

/* Work to be done in the supervisor's thread. */
typedef struct supervisor_job {
    struct supervisor_job *next;
    void (*run)(struct supervisor_job *job);
    bool queued; /* under the supervisor's lock */
} supervisor_job;

/* Starts the thread if it does not run in this process yet. 0 or an errno value. */
int supervisor_start(void);

int supervisor_add(supervisor_source *source, bool bell);
void supervisor_remove(supervisor_source *source);

/* Has a bell be heard as if it had been rung, whatever its worker has made of its descriptor: without
 * writing there, which could block. Any thread, hence its descriptor besides: that in the source goes when
 * it is removed; then nothing happens. */
void supervisor_ring(supervisor_source *source, int fd);

void supervisor_want_write(supervisor_source *source, bool want);

/* Has the job run soon, once however often it is posted before. Any thread. */
void supervisor_post(supervisor_job *job);

/* Makes sure that there is room for one more timer: setting one never fails. ENOMEM. */
int supervisor_reserve_timer(void);
void supervisor_release_timer(void);

/* Has the timer expire at the deadline, or earlier if it was set so: never later. Any thread.
 * An expired timer is unset. */
void supervisor_set_timer(supervisor_timer *timer, int64_t deadline_ns);
void supervisor_unset_timer(supervisor_timer *timer);

/* Calls destroy(object) when no event of the present round can point to it any more. Supervisor's
 * thread only. */
typedef struct supervisor_retired {
    struct supervisor_retired *next;
    void (*destroy)(struct supervisor_retired *retired);
} supervisor_retired;
void supervisor_retire(supervisor_retired *retired);

/* True in the supervisor's thread. */
bool supervisor_is_here(void);

#endif
