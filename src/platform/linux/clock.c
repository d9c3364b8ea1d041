/* The monotonic clock. */
#include "platform/platform.h"

#include <time.h>

int64_t os_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

int64_t os_deadline_after(int64_t timeout_ns) {
    int64_t now_ns = os_now_ns();
    return timeout_ns < OS_NO_DEADLINE - now_ns ? now_ns + timeout_ns : OS_NO_DEADLINE;
}
