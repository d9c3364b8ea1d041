#include "sync/ready.h"

#include <errno.h>
#include <limits.h>

#include "core/error.h"

/* ---- Sources ---- */

int ready_source_init(ready_source *source) {
    source->ready = false;
    source->nodes = NULL;
    return pthread_mutex_init(&source->mutex, NULL);
}

void ready_source_fini(ready_source *source) {
    pthread_mutex_destroy(&source->mutex);
}

/* Release, for waiter_sleep(): who finds its word rung sees the source as it is now. */
static void waiter_ring(ready_waiter *waiter) {
    if (atomic_exchange_explicit(&waiter->rung, 1, memory_order_release) == 0)
        os_futex_wake(&waiter->rung, 1);
}

void ready_source_set_locked(ready_source *source, bool ready) {
    bool gets_ready = ready && !source->ready;
    source->ready = ready;
    for (ready_node *node = source->nodes; gets_ready && node != NULL; node = node->next)
        waiter_ring(node->waiter);
}

/* ---- Sets ---- */

int ready_set_init(ready_set *set, size_t count) {
    if (count > SIZE_MAX / sizeof *set->nodes)
        return ENOMEM;
    set->nodes = count <= READY_FEW ? set->few : os_alloc(count * sizeof *set->nodes);
    if (set->nodes == NULL)
        return ENOMEM;
    set->count = count;
    atomic_init(&set->waiter.rung, 0);
    return 0;
}

void ready_set_fini(ready_set *set) {
    if (set->nodes != set->few)
        os_free(set->nodes);
}

void ready_set_source(ready_set *set, size_t index, ready_source *source) {
    set->nodes[index] = (ready_node){.source = source, .waiter = &set->waiter};
}

bool ready_set_has(const ready_set *set, size_t index) {
    return set->nodes[index].ready;
}

static void node_link(ready_node *node) {
    ready_source *source = node->source;
    pthread_mutex_lock(&source->mutex);
    node->next = source->nodes;
    node->link = &source->nodes;
    if (node->next != NULL)
        node->next->link = &node->next;
    source->nodes = node;
    pthread_mutex_unlock(&source->mutex);
}

static void node_unlink(ready_node *node) {
    pthread_mutex_lock(&node->source->mutex);
    *node->link = node->next;
    if (node->next != NULL)
        node->next->link = node->link;
    pthread_mutex_unlock(&node->source->mutex);
}

/* Notes which sources are ready; returns how many. */
static size_t set_look(ready_set *set) {
    size_t found = 0;
    for (size_t i = 0; i < set->count; i++) {
        ready_node *node = &set->nodes[i];
        pthread_mutex_lock(&node->source->mutex);
        node->ready = node->source->ready;
        pthread_mutex_unlock(&node->source->mutex);
        found += node->ready;
    }
    return found;
}

/* Sleeps until the word is rung, and clears it. False: the deadline. */
static bool waiter_sleep(ready_waiter *waiter, int64_t deadline_ns) {
    while (atomic_exchange_explicit(&waiter->rung, 0, memory_order_acquire) == 0) {
        if (os_futex_wait(&waiter->rung, 0, deadline_ns) == ETIMEDOUT)
            return false;
    }
    return true;
}

size_t ready_set_wait(ready_set *set, int64_t deadline_ns) {
    size_t found = set_look(set);
    if (found > 0)
        return found;
    for (size_t i = 0; i < set->count; i++)
        node_link(&set->nodes[i]);
    bool in_time = true; /* after the deadline, one last look */
    while ((found = set_look(set)) == 0 && in_time)
        in_time = waiter_sleep(&set->waiter, deadline_ns);
    for (size_t i = 0; i < set->count; i++)
        node_unlink(&set->nodes[i]);
    return found;
}

/* ---- Arguments ---- */

pebble_error ready_check_wait(const char *function, const char *name, const void *objects,
                              size_t count, int64_t timeout_ns, const void *ready,
                              const void *ready_count) {
    if (objects == NULL)
        return error_set(PEBBLE_ERR_INVALID, "%s: %s is NULL", function, name);
    if (count == 0)
        return error_set(PEBBLE_ERR_INVALID, "%s: count is 0", function);
    if (timeout_ns < 0)
        return error_set(PEBBLE_ERR_INVALID, "%s: timeout_ns is negative", function);
    if (ready == NULL)
        return error_set(PEBBLE_ERR_INVALID, "%s: ready is NULL", function);
    if (ready_count == NULL)
        return error_set(PEBBLE_ERR_INVALID, "%s: ready_count is NULL", function);
    return PEBBLE_OK;
}
