/* Queues of pointers between threads.
 *
 * A ring that grows up to the queue's capacity and never shrinks. The mutex of its source
 * guards all of it; the source is ready while the queue holds an item, for
 * pebble_wait_for_queues(). Single getters and putters sleep on a condition variable of
 * their own each, so that one item wakes one of them. Every change of the ring ends in
 * queue_changed_locked().
 *
 * A fork leaves a queue in the child as any mutex: of use there only if no other thread
 * was in a call on it.
 */
#include "pebble.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "core/error.h"
#include "sync/ready.h"

enum { FIRST_ROOM = 16, NS_PER_S = 1000000000 };

struct pebble_queue {
    ready_source items; /* ready: not empty; its mutex guards what follows */
    pthread_cond_t not_empty, not_full;
    void **ring;
    size_t room; /* of the ring, a power of two or 0 */
    size_t first, size;
    size_t capacity; /* constant */
};

/* ---- Making ---- */

static int conditions_init(pebble_queue *queue) {
    pthread_condattr_t attributes;
    int error = pthread_condattr_init(&attributes);
    if (error != 0)
        return error;
    error = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    if (error == 0)
        error = pthread_cond_init(&queue->not_empty, &attributes);
    if (error == 0 && (error = pthread_cond_init(&queue->not_full, &attributes)) != 0)
        pthread_cond_destroy(&queue->not_empty);
    pthread_condattr_destroy(&attributes);
    return error;
}

static int queue_init(pebble_queue *queue) {
    int error = ready_source_init(&queue->items);
    if (error != 0)
        return error;
    error = conditions_init(queue);
    if (error != 0)
        ready_source_fini(&queue->items);
    return error;
}

pebble_error pebble_queue_new(size_t capacity, pebble_queue **queue) {
    static const char name[] = "pebble_queue_new";
    if (queue == NULL)
        return error_set(PEBBLE_ERR_INVALID, "%s: queue is NULL", name);
    pebble_queue *made = os_alloc_zeroed(sizeof *made);
    if (made == NULL)
        return error_set_system(ENOMEM, name);
    made->capacity = capacity != 0 ? capacity : SIZE_MAX;
    int error = queue_init(made);
    if (error != 0) {
        os_free(made);
        return error_set_system(error, name);
    }
    *queue = made;
    return PEBBLE_OK;
}

void pebble_queue_free(pebble_queue *queue) {
    if (queue == NULL)
        return;
    pthread_cond_destroy(&queue->not_empty);
    pthread_cond_destroy(&queue->not_full);
    ready_source_fini(&queue->items);
    os_free(queue->ring);
    os_free(queue);
}

/* ---- The ring, under the mutex ---- */

static void lock(pebble_queue *queue) {
    pthread_mutex_lock(&queue->items.mutex);
}

static void unlock(pebble_queue *queue) {
    pthread_mutex_unlock(&queue->items.mutex);
}

static bool has_item(const pebble_queue *queue) {
    return queue->size > 0;
}

static bool has_room(const pebble_queue *queue) {
    return queue->size < queue->capacity;
}

/* Makes room for one item more. ENOMEM leaves the ring as it was. */
static int ring_grow(pebble_queue *queue) {
    size_t room = queue->room != 0 ? 2 * queue->room : FIRST_ROOM;
    if (queue->size < queue->room)
        return 0;
    if (room > SIZE_MAX / sizeof *queue->ring)
        return ENOMEM;
    void **ring = os_alloc(room * sizeof *ring);
    if (ring == NULL)
        return ENOMEM;
    size_t before_end = queue->room - queue->first;
    if (queue->size > 0) { /* the ring is full: two parts, in order */
        memcpy(ring, queue->ring + queue->first, before_end * sizeof *ring);
        memcpy(ring + before_end, queue->ring, queue->first * sizeof *ring);
    }
    os_free(queue->ring);
    queue->ring = ring;
    queue->room = room;
    queue->first = 0;
    return 0;
}

static void ring_append(pebble_queue *queue, void *item) {
    queue->ring[(queue->first + queue->size) & (queue->room - 1)] = item;
    queue->size++;
}

static void *ring_take(pebble_queue *queue) {
    void *item = queue->ring[queue->first];
    queue->first = (queue->first + 1) & (queue->room - 1);
    queue->size--;
    return item;
}

/* Tells those who wait; condition is that of the side which may now go on. */
static void queue_changed_locked(pebble_queue *queue, pthread_cond_t *condition) {
    ready_source_set_locked(&queue->items, has_item(queue));
    pthread_cond_signal(condition);
}

/* ---- Put and get ---- */

/* The thread is cancelled while it sleeps, with the mutex held again: a signal that was for it goes
 * to another. */
static void leave_cancelled(void *argument) {
    pebble_queue *queue = argument;
    pthread_cond_signal(&queue->not_empty);
    pthread_cond_signal(&queue->not_full);
    unlock(queue);
}

static int sleep_locked(pebble_queue *queue, pthread_cond_t *condition,
                        int64_t deadline_ns) {
    struct timespec deadline = {.tv_sec = (time_t)(deadline_ns / NS_PER_S),
                                .tv_nsec = (long)(deadline_ns % NS_PER_S)};
    int error;
    pthread_cleanup_push(leave_cancelled, queue);
    if (deadline_ns == OS_NO_DEADLINE)
        error = pthread_cond_wait(condition, &queue->items.mutex);
    else
        error = pthread_cond_timedwait(condition, &queue->items.mutex, &deadline);
    pthread_cleanup_pop(0);
    return error;
}

/* Sleeps until the predicate holds; it is looked at after the deadline too, so that a
 * signal which came together with it is not lost. False: the deadline. */
static bool wait_locked(pebble_queue *queue, bool (*holds)(const pebble_queue *),
                        pthread_cond_t *condition, int64_t timeout_ns) {
    int64_t deadline_ns = holds(queue) ? 0 : os_deadline_after(timeout_ns);
    int error = timeout_ns == 0 ? ETIMEDOUT : 0;
    while (!holds(queue)) {
        if (error == ETIMEDOUT)
            return false;
        error = sleep_locked(queue, condition, deadline_ns);
    }
    return true;
}

static pebble_error check_queue(const char *function, const pebble_queue *queue,
                                int64_t timeout_ns) {
    if (queue == NULL)
        return error_set(PEBBLE_ERR_INVALID, "%s: queue is NULL", function);
    if (timeout_ns < 0)
        return error_set(PEBBLE_ERR_INVALID, "%s: timeout_ns is negative", function);
    return PEBBLE_OK;
}

static pebble_error put_locked(pebble_queue *queue, void *item, int64_t timeout_ns,
                               const char *function) {
    if (!wait_locked(queue, has_room, &queue->not_full, timeout_ns))
        return error_set(PEBBLE_ERR_TIMEOUT, "%s: the queue stayed full", function);
    int error = ring_grow(queue);
    if (error != 0) {
        pthread_cond_signal(&queue->not_full); /* the room is there for another */
        return error_set_system(error, function);
    }
    ring_append(queue, item);
    queue_changed_locked(queue, &queue->not_empty);
    return PEBBLE_OK;
}

pebble_error pebble_queue_put(pebble_queue *queue, void *item, int64_t timeout_ns) {
    static const char name[] = "pebble_queue_put";
    pebble_error error = check_queue(name, queue, timeout_ns);
    if (error != PEBBLE_OK)
        return error;
    lock(queue);
    error = put_locked(queue, item, timeout_ns, name);
    unlock(queue);
    return error;
}

pebble_error pebble_queue_get(pebble_queue *queue, int64_t timeout_ns, void **item) {
    static const char name[] = "pebble_queue_get";
    pebble_error error = check_queue(name, queue, timeout_ns);
    if (error == PEBBLE_OK && item == NULL)
        error = error_set(PEBBLE_ERR_INVALID, "%s: item is NULL", name);
    if (error != PEBBLE_OK)
        return error;
    lock(queue);
    bool got = wait_locked(queue, has_item, &queue->not_empty, timeout_ns);
    if (got) {
        *item = ring_take(queue);
        queue_changed_locked(queue, &queue->not_full);
    }
    unlock(queue);
    return got ? PEBBLE_OK
               : error_set(PEBBLE_ERR_TIMEOUT, "%s: the queue stayed empty", name);
}

size_t pebble_queue_size(pebble_queue *queue) {
    if (check_queue("pebble_queue_size", queue, 0) != PEBBLE_OK)
        return 0;
    lock(queue);
    size_t size = queue->size;
    unlock(queue);
    return size;
}

/* ---- Several queues ---- */

pebble_error pebble_wait_for_queues(pebble_queue *const *queues, size_t count,
                                    int64_t timeout_ns, pebble_queue **ready,
                                    size_t *ready_count) {
    static const char name[] = "pebble_wait_for_queues";
    ready_set set;
    pebble_error error =
        ready_check_wait(name, "queues", queues, count, timeout_ns, ready, ready_count);
    for (size_t i = 0; error == PEBBLE_OK && i < count; i++) {
        if (queues[i] == NULL)
            error = error_set(PEBBLE_ERR_INVALID, "%s: queues[%zu] is NULL", name, i);
    }
    if (error != PEBBLE_OK)
        return error;
    if (ready_set_init(&set, count) != 0)
        return error_set_system(ENOMEM, name);
    for (size_t i = 0; i < count; i++)
        ready_set_source(&set, i, &queues[i]->items);
    ready_set_wait(&set, os_deadline_after(timeout_ns));
    size_t found = 0;
    for (size_t i = 0; i < count; i++) {
        if (ready_set_has(&set, i))
            ready[found++] = queues[i];
    }
    *ready_count = found;
    ready_set_fini(&set);
    return PEBBLE_OK;
}
