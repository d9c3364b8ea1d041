#include "core/future.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "core/fork.h"
#include "core/interrupt.h"

/* A queued task may cost 200 bytes beside its data; the allocator takes eight of them. */
_Static_assert(sizeof(pebble_future) <= 192, "a future must stay small");

/* ---- Memory: futures are reused within their pool ---- */

/* So many are kept for the next burst of tasks, about 50 MB: fresh memory costs several times what
 * a task costs. */
enum { CACHED_MAX = 1 << 18 };

static pebble_future *take_free(pebble_pool *pool) {
    pthread_mutex_lock(&pool->future_lock);
    pebble_future *future = pool->free_futures;
    if (future == NULL) {
        future =
            atomic_exchange_explicit(&pool->freed_futures, NULL, memory_order_acquire);
        atomic_store_explicit(&pool->freed_count, 0, memory_order_relaxed);
    }
    if (future != NULL)
        pool->free_futures = future->next;
    pthread_mutex_unlock(&pool->future_lock);
    return future;
}

pebble_future *future_new(pebble_pool *pool) {
    pebble_future *future = take_free(pool);
    if (future == NULL && (future = os_alloc(sizeof *future)) == NULL)
        return NULL;
    memset(future, 0, offsetof(pebble_future, small));
    atomic_store_explicit(&future->references, 2, memory_order_relaxed);
    future->pool = pool;
    pool_ref(pool);
    return future;
}

static void future_free(pebble_future *future) {
    pebble_pool *pool = future->pool;
    if (atomic_fetch_add_explicit(&pool->freed_count, 1, memory_order_relaxed) <
        CACHED_MAX) {
        pebble_future *head =
            atomic_load_explicit(&pool->freed_futures, memory_order_relaxed);
        do
            future->next = head;
        while (!atomic_compare_exchange_weak_explicit(&pool->freed_futures, &head, future,
                                                      memory_order_release,
                                                      memory_order_relaxed));
    } else {
        os_free(future);
    }
    pool_unref(pool);
}

static void free_list(pebble_future *future) {
    while (future != NULL) {
        pebble_future *next = future->next;
        os_free(future);
        future = next;
    }
}

void future_free_cached(pebble_pool *pool) {
    free_list(pool->free_futures);
    free_list(atomic_load(&pool->freed_futures));
}

/* ---- Input and outcome ---- */

int future_set_input(pebble_future *future, const void *input, size_t input_size,
                     void (*release)(void *), void *release_context) {
    void *copy = future->small;
    future->input_size = input_size;
    if (release != NULL) {
        os_expect_large_blocks(input_size);
        future->input = input != NULL ? input : future->small; /* it is released too */
        future->release_input = release;
        future->release_context = release_context;
        return 0;
    }
    if (input_size > FUTURE_INLINE && (copy = os_alloc(input_size)) == NULL)
        return ENOMEM;
    if (input_size > 0)
        memcpy(copy, input, input_size);
    future->input = copy;
    return 0;
}

/* The thread has more to end than this future: it is not cancelled in what the user does here. */
static void release_input(const pebble_future *future) {
    int cancel_state;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
    future->release_input(future->release_context);
    pthread_setcancelstate(cancel_state, NULL);
}

void future_drop_input(pebble_future *future) {
    const void *input = future->input;
    if (input == NULL)
        return;
    future->input = NULL;
    if (future->release_input != NULL)
        release_input(future);
    else if (input != future->small)
        os_free((void *)(uintptr_t)input);
}

void future_discard(pebble_future *future) {
    if (future->release_input == NULL && future->input != future->small)
        os_free((void *)(uintptr_t)future->input);
    future_free(future);
}

void result_bytes_fini(result_bytes *result) {
    os_free(result->data);
    result->data = NULL;
}

void future_set_result(pebble_future *future, result_bytes *result) {
    future->result = result->data;
    future->result_size = result->size;
    if (result->data == NULL)
        memcpy(future->small, result->small, sizeof future->small);
    result->data = NULL;
}

/* For a failure that there was no memory to describe. */
static pebble_failure failure_without_memory = {
    .kind = PEBBLE_ERR_NO_MEMORY,
    .message = "out of memory while noting how the task failed",
};

static void drop_failure(pebble_future *future) {
    if (future->failure == NULL || future->failure == &failure_without_memory)
        return;
    os_free((void *)(uintptr_t)future->failure->backtrace);
    os_free(future->failure);
}

void future_set_failure(pebble_future *future, const pebble_failure *failure,
                        char *backtrace) {
    drop_failure(future); /* of a task whose thread ended after it had failed */
    const char *message =
        failure->message != NULL ? failure->message : pebble_error_text(failure->kind);
    size_t message_size = strlen(message) + 1;
    pebble_failure *copy = os_alloc(sizeof *copy + message_size);
    if (copy == NULL) {
        os_free(backtrace);
        future->failure = &failure_without_memory;
        return;
    }
    *copy = *failure;
    copy->message = memcpy(copy + 1, message, message_size);
    copy->backtrace = backtrace;
    future->failure = copy;
}

/* ---- Ending and waiting ---- */

/* The word that those who wait for any of several futures sleep on; all of them at once. */
static _Atomic uint32_t any_word;

/* The list of an ended future: nothing can be added. */
static future_callback closed_list;

static void push_callbacks(pebble_future *future) {
    pebble_pool *pool = future->pool;
    future_callback *list =
        atomic_exchange_explicit(&future->callbacks, &closed_list, memory_order_acq_rel);
    future_callback *in_order = NULL;
    while (list != NULL) { /* the first one is last in it */
        future_callback *next = list->next;
        list->next = in_order;
        in_order = list;
        list = next;
    }
    while (in_order != NULL) {
        future_callback *next = in_order->next;
        in_order->future = pebble_future_ref(future);
        callback_runner_push(in_order->waker ? &pool->wakers : &pool->callbacks, in_order);
        in_order = next;
    }
}

void future_end(pebble_future *future, uint32_t state) {
    future_drop_input(future);
    uint32_t before = atomic_exchange_explicit(&future->word, state, memory_order_acq_rel);
    if (before & FUTURE_WAITERS)
        os_futex_wake(&future->word, INT_MAX);
    if (before & FUTURE_ANY) {
        atomic_fetch_add(&any_word, 1);
        os_futex_wake(&any_word, INT_MAX);
    }
    if (before & FUTURE_CALLBACKS)
        push_callbacks(future);
    pebble_future_unref(future);
}

void future_end_cancelled(pebble_future *future) {
    future_set_failure(future, &(pebble_failure){.kind = PEBBLE_ERR_TASK_CANCELLED}, NULL);
    future_end(future, FUTURE_CANCELLED);
}

bool future_set_bit(pebble_future *future, uint32_t bit) {
    uint32_t word = atomic_load_explicit(&future->word, memory_order_acquire);
    while ((word & FUTURE_ENDED) == 0) {
        if (atomic_compare_exchange_weak_explicit(&future->word, &word, word | bit,
                                                  memory_order_acq_rel,
                                                  memory_order_acquire))
            return true;
    }
    return false;
}

int future_sleep(pebble_future *future, int64_t deadline_ns) {
    while (future_set_bit(future, FUTURE_WAITERS)) {
        uint32_t word = atomic_load_explicit(&future->word, memory_order_acquire);
        int error = 0;
        if ((word & FUTURE_ENDED) == 0)
            error = os_futex_wait_interruptible(&future->word, word, deadline_ns);
        if (error == ETIMEDOUT || interrupt_ends_wait(error))
            return future_ended(future) ? 0 : error;
    }
    return 0;
}

pebble_error future_wait_error(int error) {
    if (error == 0)
        return PEBBLE_OK;
    return error == EINTR ? PEBBLE_ERR_INTERRUPTED : PEBBLE_ERR_TIMEOUT;
}

/* ---- The public face ---- */

static pebble_error check_future(pebble_future *future, const char *function) {
    if (future == NULL)
        return error_set(PEBBLE_ERR_INVALID, "%s: future is NULL", function);
    if (future->pool->fork_epoch != fork_epoch)
        return error_set(PEBBLE_ERR_FORKED, "%s: future belongs to the parent process",
                         function);
    return PEBBLE_OK;
}

static pebble_error check_timeout(int64_t timeout_ns, const char *function) {
    if (timeout_ns < 0)
        return error_set(PEBBLE_ERR_INVALID, "%s: timeout_ns is negative", function);
    return PEBBLE_OK;
}

static pebble_error wait_until(pebble_future *future, int64_t deadline_ns,
                               const char *function) {
    if (future_ended(future))
        return PEBBLE_OK;
    pebble_error error = future->pool->kind->wait(future->pool, future, deadline_ns);
    return error == PEBBLE_OK
               ? PEBBLE_OK
               : error_set(error, "%s: the wait ended before the future", function);
}

static pebble_error checked_wait(pebble_future *future, int64_t timeout_ns,
                                 const char *function) {
    pebble_error error = check_future(future, function);
    if (error == PEBBLE_OK)
        error = check_timeout(timeout_ns, function);
    if (error != PEBBLE_OK || future_ended(future))
        return error;
    return wait_until(future, os_deadline_after(timeout_ns), function);
}

pebble_error pebble_future_wait(pebble_future *future, int64_t timeout_ns) {
    return checked_wait(future, timeout_ns, "pebble_future_wait");
}

static pebble_error take_result(pebble_future *future, const void **data, size_t *size,
                                const char *function) {
    if (future->failure != NULL)
        return error_set(future->failure->kind, "%s: %s", function,
                         future->failure->message);
    if (data != NULL)
        *data = future->result != NULL ? future->result : future->small;
    if (size != NULL)
        *size = future->result_size;
    return PEBBLE_OK;
}

pebble_error pebble_future_result(pebble_future *future, int64_t timeout_ns,
                                  const void **data, size_t *size) {
    pebble_error error = checked_wait(future, timeout_ns, "pebble_future_result");
    return error != PEBBLE_OK ? error
                              : take_result(future, data, size, "pebble_future_result");
}

pebble_error pebble_future_copy_result(pebble_future *future, int64_t timeout_ns,
                                       void *data, size_t size) {
    static const char name[] = "pebble_future_copy_result";
    const void *bytes = NULL;
    size_t bytes_size = 0;
    pebble_error error = checked_wait(future, timeout_ns, name);
    if (error == PEBBLE_OK && data == NULL && size > 0)
        return error_set(PEBBLE_ERR_INVALID, "%s: data is NULL", name);
    if (error == PEBBLE_OK)
        error = take_result(future, &bytes, &bytes_size, name);
    if (error != PEBBLE_OK)
        return error;
    if (bytes_size != size)
        return error_set(PEBBLE_ERR_INVALID, "%s: size is %zu, the result has %zu bytes",
                         name, size, bytes_size);
    if (size > 0)
        memcpy(data, bytes, size);
    return PEBBLE_OK;
}

const pebble_failure *pebble_future_failure(pebble_future *future) {
    if (check_future(future, "pebble_future_failure") != PEBBLE_OK ||
        !pebble_future_done(future))
        return NULL;
    return future->failure;
}

pebble_state pebble_future_state(pebble_future *future) {
    if (check_future(future, "pebble_future_state") != PEBBLE_OK)
        return PEBBLE_CANCELLED;
    if (!future_ended(future))
        future->pool->kind->look(future->pool, future);
    switch (future_state(future)) {
    case FUTURE_FINISHED:
        return PEBBLE_FINISHED;
    case FUTURE_CANCELLED:
        return PEBBLE_CANCELLED;
    case FUTURE_QUEUED:
        return future->pool->kind->state(future->pool, future);
    default:
        return PEBBLE_RUNNING;
    }
}

bool pebble_future_done(pebble_future *future) {
    if (check_future(future, "pebble_future_done") != PEBBLE_OK)
        return false;
    if (!future_ended(future))
        future->pool->kind->look(future->pool, future);
    return future_ended(future);
}

pid_t pebble_future_pid(pebble_future *future) {
    if (check_future(future, "pebble_future_pid") != PEBBLE_OK)
        return 0;
    return future_ended(future) ? future->pid
                                : future->pool->kind->pid(future->pool, future);
}

bool pebble_future_cancel(pebble_future *future) {
    if (check_future(future, "pebble_future_cancel") != PEBBLE_OK || future_ended(future))
        return false;
    return future->pool->kind->cancel(future->pool, future);
}

/* False: the future has ended, and the list has been taken. */
static bool push_callback(pebble_future *future, future_callback *entry) {
    future_callback *head = atomic_load_explicit(&future->callbacks, memory_order_acquire);
    do {
        if (head == &closed_list)
            return false;
        entry->next = head;
    } while (!atomic_compare_exchange_weak_explicit(
        &future->callbacks, &head, entry, memory_order_acq_rel, memory_order_acquire));
    return true;
}

static pebble_error add_callback(pebble_future *future, pebble_callback callback,
                                 void *context, bool waker, const char *name) {
    pebble_error error = check_future(future, name);
    if (error == PEBBLE_OK && callback == NULL)
        error = error_set(PEBBLE_ERR_INVALID, "%s: callback is NULL", name);
    if (error != PEBBLE_OK)
        return error;
    if (future_ended(future)) {
        callback(future, context);
        return PEBBLE_OK;
    }
    pebble_pool *pool = future->pool;
    int failed = callback_runner_start(waker ? &pool->wakers : &pool->callbacks);
    future_callback *entry = failed == 0 ? os_alloc(sizeof *entry) : NULL;
    if (entry == NULL)
        return error_set_system(failed != 0 ? failed : ENOMEM, name);
    *entry = (future_callback){.function = callback, .context = context, .waker = waker};
    if (future_set_bit(future, FUTURE_CALLBACKS) && push_callback(future, entry)) {
        pool->kind->want(pool, future);
        return PEBBLE_OK;
    }
    os_free(entry); /* it has ended meanwhile */
    callback(future, context);
    return PEBBLE_OK;
}

pebble_error pebble_future_add_callback(pebble_future *future, pebble_callback callback,
                                        void *context) {
    return add_callback(future, callback, context, false, "pebble_future_add_callback");
}

pebble_error pebble_future_add_waker(pebble_future *future, pebble_callback callback,
                                     void *context) {
    return add_callback(future, callback, context, true, "pebble_future_add_waker");
}

pebble_future *pebble_future_ref(pebble_future *future) {
    if (future != NULL)
        atomic_fetch_add_explicit(&future->references, 1, memory_order_relaxed);
    return future;
}

void pebble_future_unref(pebble_future *future) {
    if (future == NULL || future->pool->fork_epoch != fork_epoch)
        return;
    if (atomic_fetch_sub_explicit(&future->references, 1, memory_order_acq_rel) != 1)
        return;
    drop_failure(future);
    os_free(future->result);
    future_free(future);
}

/* ---- Several futures ---- */

static pebble_error check_futures(pebble_future *const *futures, size_t count,
                                  int64_t timeout_ns, const char *function) {
    if (futures == NULL && count > 0)
        return error_set(PEBBLE_ERR_INVALID, "%s: futures is NULL", function);
    for (size_t i = 0; i < count; i++) {
        if (futures[i] == NULL)
            return error_set(PEBBLE_ERR_INVALID, "%s: futures[%zu] is NULL", function, i);
        if (futures[i]->pool->fork_epoch != fork_epoch)
            return check_future(futures[i], function);
    }
    return check_timeout(timeout_ns, function);
}

pebble_error future_wait_all(pebble_future *const *futures, size_t count,
                             int64_t timeout_ns, const char *name) {
    pebble_error error = check_futures(futures, count, timeout_ns, name);
    if (error != PEBBLE_OK)
        return error;
    int64_t deadline_ns = os_deadline_after(timeout_ns);
    for (size_t i = 0; i < count && error == PEBBLE_OK; i++)
        error = wait_until(futures[i], deadline_ns, name);
    return error;
}

pebble_error pebble_future_wait_all(pebble_future *const *futures, size_t count,
                                    int64_t timeout_ns) {
    return future_wait_all(futures, count, timeout_ns, "pebble_future_wait_all");
}

/* The first that has ended, or count. */
static size_t find_ended(pebble_future *const *futures, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (future_ended(futures[i]))
            return i;
    }
    return count;
}

/* Marks all as waited for; stops early at one that has ended. */
static void want_any(pebble_future *const *futures, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (!future_set_bit(futures[i], FUTURE_ANY))
            return;
        futures[i]->pool->kind->want(futures[i]->pool, futures[i]);
    }
}

pebble_error pebble_future_wait_any(pebble_future *const *futures, size_t count,
                                    int64_t timeout_ns, size_t *index) {
    static const char name[] = "pebble_future_wait_any";
    pebble_error error = check_futures(futures, count, timeout_ns, name);
    if (error == PEBBLE_OK && count == 0)
        error = error_set(PEBBLE_ERR_INVALID, "%s: count is 0", name);
    if (error != PEBBLE_OK)
        return error;
    int64_t deadline_ns = os_deadline_after(timeout_ns);
    size_t first = find_ended(futures, count);
    if (first == count)
        want_any(futures, count);
    for (;;) {
        uint32_t seen = atomic_load(&any_word);
        first = find_ended(futures, count);
        if (first < count)
            break;
        int ended = os_futex_wait_interruptible(&any_word, seen, deadline_ns);
        if (ended == ETIMEDOUT || interrupt_ends_wait(ended))
            return error_set(future_wait_error(ended),
                             "%s: the wait ended before a future", name);
    }
    if (index != NULL)
        *index = first;
    return PEBBLE_OK;
}
