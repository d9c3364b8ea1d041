/* Map: its elements are tasks, alone or in chunks; the results come in the order of the inputs.
 *
 * A map is a list of futures and a place in it. One thread at a time iterates; cancelling and
 * waiting may go on beside it, for the list never changes.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/chunk.h"
#include "core/error.h"
#include "core/fork.h"
#include "core/future.h"

struct pebble_map {
    _Atomic uint32_t references;
    uint32_t fork_epoch;
    size_t count, chunk_size;
    size_t future_count;
    int64_t limit_ns;    /* threads: the timeout counts from the map's start */
    int64_t deadline_ns; /* threads: when that is over */

    /* The iteration. */
    size_t next;      /* element that pebble_map_next() gives next */
    size_t offset;    /* in its chunk's result of the outcome */
    size_t offset_of; /* of this element */
    bool failed;      /* the element before failed, as told by: */
    pebble_failure failure;
    char *message; /* what failure.message points to, if it is not a future's */

    pebble_future *futures[];
};

static pebble_error check_map(const pebble_map *map, const char *name) {
    if (map == NULL)
        return error_set(PEBBLE_ERR_INVALID, "%s: map is NULL", name);
    if (map->fork_epoch != fork_epoch)
        return error_set(PEBBLE_ERR_FORKED, "%s: map belongs to the parent process", name);
    return PEBBLE_OK;
}

/* ---- Making ---- */

static pebble_error check_options(const pebble_pool *pool,
                                  const pebble_map_options *options,
                                  pebble_map *const *map, const char *name) {
    const char *problem = NULL;
    size_t total;
    if (pool == NULL)
        problem = "pool is NULL";
    else if (options->function == NULL)
        problem = "function is NULL";
    else if (map == NULL)
        problem = "map is NULL";
    else if (options->timeout_ns < 0)
        problem = "timeout_ns is negative";
    else if (options->items != NULL && options->inputs != NULL)
        problem = "both items and inputs are set";
    else if (options->count > 0 && options->items == NULL && options->inputs == NULL)
        problem = "items and inputs are NULL, count is not 0";
    else if (__builtin_mul_overflow(options->item_size, options->count, &total) ||
             total > PTRDIFF_MAX ||
             options->count > PTRDIFF_MAX / sizeof(pebble_future *) / 2)
        problem = "item_size times count is too large";
    for (size_t i = 0; problem == NULL && options->inputs != NULL && i < options->count;
         i++) {
        if (options->inputs[i].data == NULL && options->inputs[i].size > 0)
            return error_set(PEBBLE_ERR_INVALID,
                             "%s: inputs[%zu].data is NULL, its size is not 0", name, i);
        if (options->inputs[i].size > PTRDIFF_MAX)
            return error_set(PEBBLE_ERR_INVALID, "%s: inputs[%zu].size is too large",
                             name, i);
    }
    if (problem != NULL)
        return error_set(PEBBLE_ERR_INVALID, "%s: %s", name, problem);
    if (pool->fork_epoch != fork_epoch)
        return error_set(PEBBLE_ERR_FORKED, "%s: pool belongs to the parent process",
                         name);
    return PEBBLE_OK;
}

static pebble_error schedule_element(pebble_pool *pool, const pebble_map_options *options,
                                     size_t index, pebble_task_options *task,
                                     pebble_future **future, const char *name) {
    if (options->inputs != NULL) {
        task->input = options->inputs[index].data;
        task->input_size = options->inputs[index].size;
    } else {
        task->input = (const char *)options->items + index * options->item_size;
        task->input_size = options->item_size;
    }
    return pool_schedule(pool, task, TASK_FUNCTION, future, name);
}

static pebble_error schedule_chunk(pebble_pool *pool, const pebble_map_options *options,
                                   size_t first, size_t count, pebble_task_options *task,
                                   pebble_future **future, const char *name) {
    size_t size;
    const void *items = options->items != NULL
                            ? (const char *)options->items + first * options->item_size
                            : NULL;
    const pebble_bytes *inputs = options->inputs != NULL ? options->inputs + first : NULL;
    void *packed = chunk_pack(items, options->item_size, inputs, count, &size);
    if (packed == NULL)
        return error_set_system(ENOMEM, name);
    task->input = packed;
    task->input_size = size;
    task->release_input = os_free;
    task->release_context = packed;
    pebble_error error = pool_schedule(pool, task, TASK_CHUNK, future, name);
    if (error != PEBBLE_OK)
        os_free(packed);
    return error;
}

static pebble_error schedule_all(pebble_map *map, pebble_pool *pool,
                                 const pebble_map_options *options, const char *name) {
    bool threads = pool->kind->threads;
    pebble_error error = PEBBLE_OK;
    for (size_t i = 0; i < options->count && error == PEBBLE_OK; i += map->chunk_size) {
        pebble_task_options task = PEBBLE_TASK_OPTIONS_INIT;
        pebble_future **future = &map->futures[map->future_count];
        size_t left = options->count - i;
        task.function = options->function;
        task.timeout_ns = threads ? 0 : options->timeout_ns;
        if (map->chunk_size == 1)
            error = schedule_element(pool, options, i, &task, future, name);
        else
            error = schedule_chunk(pool, options, i,
                                   left < map->chunk_size ? left : map->chunk_size, &task,
                                   future, name);
        map->future_count += error == PEBBLE_OK;
    }
    return error;
}

static pebble_error map_new(pebble_pool *pool, const pebble_map_options *options,
                            pebble_map **map, const char *name) {
    pebble_error error = check_options(pool, options, map, name);
    if (error != PEBBLE_OK)
        return error;
    if (options->count == 0 && (error = pool->kind->check_active(pool, name)) != PEBBLE_OK)
        return error;
    size_t chunk_size = options->chunk_size > 0 ? options->chunk_size : 1;
    size_t futures = options->count / chunk_size + (options->count % chunk_size != 0);
    pebble_map *made = os_alloc_zeroed(sizeof *made + futures * sizeof(pebble_future *));
    if (made == NULL)
        return error_set_system(ENOMEM, name);
    atomic_store(&made->references, 1);
    made->fork_epoch = fork_epoch;
    made->count = options->count;
    made->chunk_size = chunk_size;
    made->deadline_ns = OS_NO_DEADLINE;
    if (pool->kind->threads && options->timeout_ns > 0) {
        made->limit_ns = options->timeout_ns;
        made->deadline_ns = os_deadline_after(options->timeout_ns);
    }
    error = schedule_all(made, pool, options, name);
    if (error != PEBBLE_OK) {
        pebble_map_cancel(made);
        pebble_map_unref(made);
        return error;
    }
    *map = made;
    return PEBBLE_OK;
}

pebble_error pebble_pool_map(pebble_pool *pool, pebble_function function,
                             const void *items, size_t item_size, size_t count,
                             size_t chunk_size, int64_t timeout_ns, pebble_map **map) {
    pebble_map_options options = PEBBLE_MAP_OPTIONS_INIT;
    options.function = function;
    options.items = items;
    options.item_size = item_size;
    options.count = count;
    options.chunk_size = chunk_size;
    options.timeout_ns = timeout_ns;
    return map_new(pool, &options, map, "pebble_pool_map");
}

pebble_error pebble_pool_map_with(pebble_pool *pool, const pebble_map_options *options,
                                  pebble_map **map) {
    static const char name[] = "pebble_pool_map_with";
    pebble_map_options all = PEBBLE_MAP_OPTIONS_INIT;
    if (options == NULL ||
        options->struct_size < sizeof(size_t) + sizeof(pebble_function) ||
        options->struct_size > 16 * sizeof all)
        return error_set(PEBBLE_ERR_INVALID,
                         "%s: options is NULL or its struct_size is wrong", name);
    memcpy(&all, options,
           options->struct_size < sizeof all ? options->struct_size : sizeof all);
    return map_new(pool, &all, map, name);
}

/* ---- Iterating ---- */

static pebble_error note_failure(pebble_map *map, const pebble_failure *failure,
                                 const char *name) {
    map->failed = true;
    map->failure = *failure;
    return error_set(failure->kind, "%s: %s", name, failure->message);
}

/* The failure of one element of a chunk; its message ends without a zero. */
static pebble_error note_element_failure(pebble_map *map, const chunk_outcome *outcome,
                                         const char *message, pid_t pid,
                                         const char *name) {
    pebble_failure failure = {
        .kind = PEBBLE_ERR_TASK_FAILED, .code = outcome->code, .pid = pid, .message = ""};
    os_free(map->message);
    map->message = os_alloc((size_t)outcome->size + 1);
    if (map->message != NULL) {
        memcpy(map->message, message, (size_t)outcome->size);
        map->message[outcome->size] = '\0';
        failure.message = map->message;
    }
    return note_failure(map, &failure, name);
}

/* Finds the outcome of the element at map->next: behind the one that was taken last, unless some
 * were passed over since then. */
static bool find_in_chunk(pebble_map *map, const void *result, size_t result_size,
                          chunk_outcome *outcome, const void **bytes) {
    size_t first = map->next - map->next % map->chunk_size;
    if (map->offset_of != map->next || map->next == first) {
        map->offset_of = first;
        map->offset = 0;
    }
    bool found = true;
    while (found && map->offset_of <= map->next) {
        found = chunk_next(result, result_size, &map->offset, outcome, bytes);
        map->offset_of++;
    }
    if (!found) { /* nor is there anything behind it */
        map->offset_of = map->next + 1;
        map->offset = result_size;
    }
    return found;
}

/* The element at map->next of a chunk that has a result. */
static pebble_error take_from_chunk(pebble_map *map, pebble_future *future,
                                    const void **data, size_t *size, const char *name) {
    const void *result = future->result != NULL ? future->result : future->small;
    chunk_outcome outcome;
    const void *bytes;
    if (!find_in_chunk(map, result, future->result_size, &outcome, &bytes)) {
        pebble_failure damaged = {.kind = PEBBLE_ERR_TASK_FAILED,
                                  .message = "the worker's result is damaged",
                                  .pid = future->pid};
        return note_failure(map, &damaged, name);
    }
    if (outcome.failed)
        return note_element_failure(map, &outcome, bytes, future->pid, name);
    if (data != NULL)
        *data = bytes;
    if (size != NULL)
        *size = (size_t)outcome.size;
    return PEBBLE_OK;
}

static pebble_error take_element(pebble_map *map, pebble_future *future,
                                 const void **data, size_t *size, const char *name) {
    if (future->failure != NULL)
        return note_failure(map, future->failure, name);
    if (map->chunk_size == 1)
        return pebble_future_result(future, 0, data, size);
    return take_from_chunk(map, future, data, size, name);
}

/* Of a map on threads: the element at map->next is not there in time. */
static pebble_error note_late(pebble_map *map, const char *name) {
    enum { SIZE = 96 };
    pebble_failure late = {.kind = PEBBLE_ERR_TASK_TIMEOUT,
                           .message = pebble_error_text(PEBBLE_ERR_TASK_TIMEOUT),
                           .timeout_ns = map->limit_ns};
    os_free(map->message);
    map->message = os_alloc(SIZE);
    if (map->message != NULL) {
        snprintf(map->message, SIZE,
                 "the element was not there %.3f s after the map was made",
                 (double)map->limit_ns / 1e9);
        late.message = map->message;
    }
    return note_failure(map, &late, name);
}

static int64_t earlier(int64_t a_ns, int64_t b_ns) {
    return a_ns < b_ns ? a_ns : b_ns;
}

pebble_error pebble_map_next(pebble_map *map, int64_t timeout_ns, const void **data,
                             size_t *size) {
    static const char name[] = "pebble_map_next";
    pebble_error error = check_map(map, name);
    if (error != PEBBLE_OK)
        return error;
    if (timeout_ns < 0)
        return error_set(PEBBLE_ERR_INVALID, "%s: timeout_ns is negative", name);
    map->failed = false;
    if (map->next == map->count)
        return error_set(PEBBLE_ERR_END, "%s: there are no more elements", name);
    pebble_future *future = map->futures[map->next / map->chunk_size];
    if (!future_ended(future)) {
        int64_t deadline_ns = os_deadline_after(timeout_ns);
        error = future->pool->kind->wait(future->pool, future,
                                         earlier(deadline_ns, map->deadline_ns));
        if (error == PEBBLE_ERR_INTERRUPTED ||
            (error != PEBBLE_OK && deadline_ns < map->deadline_ns))
            return error_set(error, "%s: the wait ended before the element", name);
    }
    if (error == PEBBLE_OK) {
        error = take_element(map, future, data, size, name);
    } else {
        error = note_late(map, name);
    }
    map->next++;
    return error;
}

const pebble_failure *pebble_map_failure(const pebble_map *map) {
    return check_map(map, "pebble_map_failure") == PEBBLE_OK && map->failed
               ? &map->failure
               : NULL;
}

/* ---- As a whole ---- */

pebble_error pebble_map_wait(pebble_map *map, int64_t timeout_ns) {
    pebble_error error = check_map(map, "pebble_map_wait");
    if (error == PEBBLE_OK && timeout_ns < 0)
        error = error_set(PEBBLE_ERR_INVALID, "pebble_map_wait: timeout_ns is negative");
    if (error != PEBBLE_OK)
        return error;
    return future_wait_all(map->futures, map->future_count, timeout_ns, "pebble_map_wait");
}

bool pebble_map_done(pebble_map *map) {
    if (check_map(map, "pebble_map_done") != PEBBLE_OK)
        return false;
    for (size_t i = 0; i < map->future_count; i++) {
        if (!pebble_future_done(map->futures[i]))
            return false;
    }
    return true;
}

/* From the last to the first, so that no worker starts one that is about to be cancelled. */
bool pebble_map_cancel(pebble_map *map) {
    bool cancelled = false;
    if (check_map(map, "pebble_map_cancel") != PEBBLE_OK)
        return false;
    for (size_t i = map->future_count; i-- > 0;)
        cancelled |= pebble_future_cancel(map->futures[i]);
    return cancelled;
}

pebble_map *pebble_map_ref(pebble_map *map) {
    if (map != NULL)
        atomic_fetch_add_explicit(&map->references, 1, memory_order_relaxed);
    return map;
}

void pebble_map_unref(pebble_map *map) {
    if (map == NULL || map->fork_epoch != fork_epoch)
        return;
    if (atomic_fetch_sub_explicit(&map->references, 1, memory_order_acq_rel) != 1)
        return;
    for (size_t i = 0; i < map->future_count; i++)
        pebble_future_unref(map->futures[i]);
    os_free(map->message);
    os_free(map);
}
