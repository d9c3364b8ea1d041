/* Fault injection: makes a call of the port layer fail, in test builds only. */
#include "platform/platform.h"

#ifdef PEBBLE_FAULT_INJECTION

static _Atomic int armed_kind = OS_FAULT_NONE;
static _Atomic unsigned calls_to_go;
static _Atomic unsigned calls_seen;
static _Atomic bool repeats;

void pebble_test_fault(os_fault kind, unsigned nth, bool repeat) {
    atomic_store(&armed_kind, OS_FAULT_NONE);
    atomic_store(&calls_to_go, nth);
    atomic_store(&calls_seen, 0);
    atomic_store(&repeats, repeat);
    atomic_store(&armed_kind, (int)kind);
}

unsigned pebble_test_fault_calls(void) {
    return atomic_load(&calls_seen);
}

bool os_fault_hits(os_fault kind) {
    if (atomic_load_explicit(&armed_kind, memory_order_relaxed) != (int)kind)
        return false;
    unsigned seen = atomic_fetch_add(&calls_seen, 1) + 1;
    unsigned nth = atomic_load(&calls_to_go);
    return nth != 0 && (seen == nth || (atomic_load(&repeats) && seen > nth));
}

#else
typedef int fault_injection_is_off; /* ISO C wants something in a file */
#endif
