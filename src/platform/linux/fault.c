/* Fault injection: makes a call of the port layer fail, in test builds only. */
#include "platform/platform.h"

#ifdef PEBBLE_FAULT_INJECTION

static _Atomic int armed_kind = OS_FAULT_NONE;
static _Atomic unsigned calls_to_go;
static _Atomic unsigned own_calls;
static _Atomic(_Atomic unsigned *) calls_seen = &own_calls;
static _Atomic bool repeats;

static void arm(os_fault kind, unsigned nth, bool repeat, _Atomic unsigned *calls) {
    atomic_store(&armed_kind, OS_FAULT_NONE);
    atomic_store(&calls_to_go, nth);
    atomic_store(&calls_seen, calls);
    atomic_store(&repeats, repeat);
    atomic_store(&armed_kind, (int)kind);
}

void pebble_test_fault(os_fault kind, unsigned nth, bool repeat) {
    atomic_store(&armed_kind, OS_FAULT_NONE);
    atomic_store(&own_calls, 0);
    arm(kind, nth, repeat, &own_calls);
}

void pebble_test_fault_shared(os_fault kind, unsigned nth, bool repeat,
                              _Atomic unsigned *calls) {
    arm(kind, nth, repeat, calls);
}

unsigned pebble_test_fault_calls(void) {
    return atomic_load(atomic_load(&calls_seen));
}

bool os_fault_hits(os_fault kind) {
    if (atomic_load_explicit(&armed_kind, memory_order_relaxed) != (int)kind)
        return false;
    unsigned seen = atomic_fetch_add(atomic_load(&calls_seen), 1) + 1;
    unsigned nth = atomic_load(&calls_to_go);
    return nth != 0 && (seen == nth || (atomic_load(&repeats) && seen > nth));
}

#else
typedef int fault_injection_is_off; /* ISO C wants something in a file */
#endif
