#include "deferred.h"

#include <stdatomic.h>

#include "interpreter.h"

static _Atomic(deferred *) list;
static atomic_bool asked; /* drain_pending() is in the queue of pending calls, or about to be */
static _Thread_local bool drains_next;

static int drain_pending(void *context) {
    (void)context;
    /* Before it takes the list, and acquiring, with what was pushed before: by whoever found it asked. */
    atomic_exchange_explicit(&asked, false, memory_order_acq_rel);
    deferred_drain();
    return 0;
}

void deferred_push(void *context) {
    deferred *entry = context;
    deferred *head = atomic_load_explicit(&list, memory_order_relaxed);
    do
        entry->next = head;
    while (!atomic_compare_exchange_weak_explicit(
        &list, &head, entry, memory_order_release, memory_order_relaxed));
    if (drains_next || interpreter_is_ending() ||
        atomic_exchange_explicit(&asked, true, memory_order_acq_rel))
        return;
    if (Py_AddPendingCall(drain_pending, NULL) < 0) /* full: the next push asks again */
        atomic_store_explicit(&asked, false, memory_order_release);
}

void deferred_forked(void) {
    atomic_store_explicit(&asked, false, memory_order_relaxed);
}

void deferred_drain_next(void) {
    drains_next = true;
}

void deferred_drain(void) {
    drains_next = false;
    if (atomic_load_explicit(&list, memory_order_relaxed) == NULL)
        return;
    deferred *entry = atomic_exchange_explicit(&list, NULL, memory_order_acquire);
    while (entry != NULL) {
        deferred *next = entry->next;
        Py_DECREF(entry->object);
        entry = next;
    }
}
