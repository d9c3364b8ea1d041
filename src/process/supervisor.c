/* One lock protects jobs and timers; it is the innermost one: pool lock → supervisor lock. It is
 * not held while anything is called.
 *
 * The poller's timer is armed for the earliest deadline by whoever sets an earlier one, so that
 * no wake of the thread is needed for it; the thread arms it anew after each round. */
#include "process/supervisor.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

enum { EVENTS = 64, TIMERS = 64, HEAP_START = 64 }; /* events, timers: a round */

typedef struct supervisor_state {
    os_poller *poller;
    supervisor_job *first, *last;
    supervisor_timer **heap; /* binary, by deadline, places from 1 */
    size_t count, reserved, capacity;
    int64_t armed_ns;
    supervisor_retired *retired;
    bool started;
} supervisor_state;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static supervisor_state state;
static _Thread_local bool is_here;

bool supervisor_is_here(void) {
    return is_here;
}

/* ---- Timers ---- */

static void place(supervisor_timer *timer, size_t at) {
    state.heap[at] = timer;
    timer->place = at;
}

static void sift_up(supervisor_timer *timer, size_t at) {
    while (at > 1 && state.heap[at / 2]->deadline_ns > timer->deadline_ns) {
        place(state.heap[at / 2], at);
        at /= 2;
    }
    place(timer, at);
}

static void sift_down(supervisor_timer *timer, size_t at) {
    for (size_t child; (child = 2 * at) <= state.count; at = child) {
        if (child < state.count &&
            state.heap[child + 1]->deadline_ns < state.heap[child]->deadline_ns)
            child++;
        if (state.heap[child]->deadline_ns >= timer->deadline_ns)
            break;
        place(state.heap[child], at);
    }
    place(timer, at);
}

static void take_out(supervisor_timer *timer) {
    size_t at = timer->place;
    supervisor_timer *last = state.heap[state.count--];
    timer->place = 0;
    timer->deadline_ns = OS_NO_DEADLINE;
    if (last == timer)
        return;
    sift_up(last, at);
    sift_down(last, last->place);
}

int supervisor_reserve_timer(void) {
    int error = 0;
    pthread_mutex_lock(&lock);
    if (state.reserved + 1 >= state.capacity) { /* places count from 1 */
        size_t capacity = state.capacity > 0 ? state.capacity * 2 : HEAP_START;
        supervisor_timer **heap =
            os_realloc(state.heap, capacity * sizeof(supervisor_timer *));
        error = heap != NULL ? 0 : ENOMEM;
        if (error == 0) {
            state.heap = heap;
            state.capacity = capacity;
        }
    }
    state.reserved += error == 0;
    pthread_mutex_unlock(&lock);
    return error;
}

void supervisor_release_timer(void) {
    pthread_mutex_lock(&lock);
    state.reserved--;
    pthread_mutex_unlock(&lock);
}

static void arm(int64_t deadline_ns) {
    if (deadline_ns == state.armed_ns)
        return;
    state.armed_ns = deadline_ns;
    os_poller_set_timer(state.poller, deadline_ns);
}

void supervisor_set_timer(supervisor_timer *timer, int64_t deadline_ns) {
    pthread_mutex_lock(&lock);
    if (timer->place == 0) {
        timer->deadline_ns = deadline_ns;
        state.count++;
        sift_up(timer, state.count);
    } else if (deadline_ns < timer->deadline_ns) {
        timer->deadline_ns = deadline_ns;
        sift_up(timer, timer->place);
    }
    if (state.heap[1]->deadline_ns < state.armed_ns)
        arm(state.heap[1]->deadline_ns);
    pthread_mutex_unlock(&lock);
}

void supervisor_unset_timer(supervisor_timer *timer) {
    pthread_mutex_lock(&lock);
    if (timer->place != 0)
        take_out(timer);
    pthread_mutex_unlock(&lock);
}

/* Takes one timer whose time has come; NULL if there is none. */
static supervisor_timer *take_expired(int64_t now_ns) {
    supervisor_timer *timer = NULL;
    pthread_mutex_lock(&lock);
    if (state.count > 0 && state.heap[1]->deadline_ns <= now_ns) {
        timer = state.heap[1];
        take_out(timer);
    }
    pthread_mutex_unlock(&lock);
    return timer;
}

/* Arms the poller for the next timer: at once, if its time has come. */
static void arm_next(void) {
    pthread_mutex_lock(&lock);
    if (state.armed_ns <= os_now_ns()) /* it rang: it is not armed any more */
        state.armed_ns = OS_NO_DEADLINE;
    arm(state.count > 0 ? state.heap[1]->deadline_ns : OS_NO_DEADLINE);
    pthread_mutex_unlock(&lock);
}

/* ---- Sources and jobs ---- */

int supervisor_add(supervisor_source *source, bool bell) {
    return bell ? os_poller_add_bell(state.poller, source->fd, source)
                : os_poller_add(state.poller, source->fd, source);
}

void supervisor_remove(supervisor_source *source) {
    if (source->fd < 0)
        return;
    os_poller_remove(state.poller, source->fd);
    source->fd = -1;
}

void supervisor_ring(supervisor_source *source, int fd) {
    os_poller_ring(state.poller, fd, source);
}

void supervisor_want_write(supervisor_source *source, bool want) {
    os_poller_want_write(state.poller, source->fd, source, want);
}

void supervisor_post(supervisor_job *job) {
    pthread_mutex_lock(&lock);
    bool first = !job->queued && state.first == NULL;
    if (!job->queued) {
        job->queued = true;
        job->next = NULL;
        if (state.last != NULL)
            state.last->next = job;
        else
            state.first = job;
        state.last = job;
    }
    os_poller *poller = state.poller;
    pthread_mutex_unlock(&lock);
    if (first && !is_here)
        os_poller_wake(poller);
}

/* Those that are there now: what they post in their turn comes after events and timers. True if there
 * are more. */
static bool run_jobs(void) {
    pthread_mutex_lock(&lock);
    supervisor_job *job = state.first;
    state.first = state.last = NULL;
    while (job != NULL) {
        supervisor_job *next = job->next;
        job->queued = false;
        pthread_mutex_unlock(&lock);
        job->run(job);
        pthread_mutex_lock(&lock);
        job = next;
    }
    bool more = state.first != NULL;
    pthread_mutex_unlock(&lock);
    if (more)
        os_poller_wake(state.poller);
    return more;
}

void supervisor_retire(supervisor_retired *retired) {
    retired->next = state.retired;
    state.retired = retired;
}

static void destroy_retired(void) {
    while (state.retired != NULL) {
        supervisor_retired *retired = state.retired;
        state.retired = retired->next;
        retired->destroy(retired);
    }
}

/* ---- The thread ---- */

static void run(void *context) {
    os_poller_event events[EVENTS];
    supervisor_timer *timer;
    (void)context;
    is_here = true;
    for (;;) {
        size_t count = os_poller_wait(state.poller, events, EVENTS);
        for (size_t i = 0; i < count; i++) {
            supervisor_source *source = events[i].context;
            if (source->fd >= 0)
                source->ready(source, &events[i]);
        }
        for (int i = 0; i < TIMERS && (timer = take_expired(os_now_ns())) != NULL; i++)
            timer->expired(timer);
        arm_next();
        if (!run_jobs()) /* else one may be of what is retired */
            destroy_retired();
    }
}

static int start_locked(void) {
    /* What a parent process left here is not ours: its descriptors are closed, its memory stays. */
    memset(&state, 0, sizeof state);
    state.armed_ns = OS_NO_DEADLINE;
    int error = os_poller_new(&state.poller);
    if (error == 0)
        error = os_thread_start(run, NULL, "pebble-super");
    if (error != 0) {
        os_poller_free(state.poller);
        return error;
    }
    state.started = true;
    return 0;
}

/* In the child of a fork, which has one thread: the lock may have been left locked by a thread
 * that is not there. */
static void forget_after_fork(void) {
    lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    state.started = false;
    is_here = false;
}

static pthread_once_t watching = PTHREAD_ONCE_INIT;
static int watch_error;

static void watch_forks(void) {
    watch_error = pthread_atfork(NULL, NULL, forget_after_fork);
}

/* When the library is loaded, see fork.c. */
__attribute__((constructor)) static void watch_early(void) {
    pthread_once(&watching, watch_forks);
}

int supervisor_start(void) {
    pthread_once(&watching, watch_forks);
    pthread_mutex_lock(&lock);
    int error = state.started ? 0 : watch_error != 0 ? watch_error : start_locked();
    pthread_mutex_unlock(&lock);
    return error;
}
