/* Futexes. Deadlines are absolute on the monotonic clock, which FUTEX_WAIT_BITSET takes as is. */
#include "platform/platform.h"

#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Both are newer than the headers that we build with. */
#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif

struct waitv_entry { /* struct futex_waitv of Linux 5.16 */
    uint64_t expected;
    uint64_t address;
    uint32_t flags;
    uint32_t reserved;
};

enum { WAITV_SIZE_U32 = 2, WAITV_PRIVATE = 128 };

static struct timespec timespec_of(int64_t ns) {
    return (struct timespec){.tv_sec = (time_t)(ns / 1000000000),
                             .tv_nsec = ns % 1000000000};
}

static int wait_result(long result) {
    return result < 0 && (errno == ETIMEDOUT || errno == EINTR || errno == ENOSYS) ? errno
                                                                                   : 0;
}

static int futex_wait(const _Atomic uint32_t *word, uint32_t expected,
                      int64_t deadline_ns, int private_flag) {
    struct timespec deadline = timespec_of(deadline_ns);
    return wait_result(syscall(SYS_futex, word, FUTEX_WAIT_BITSET | private_flag,
                               expected, deadline_ns == OS_NO_DEADLINE ? NULL : &deadline,
                               NULL, FUTEX_BITSET_MATCH_ANY));
}

int os_futex_wait(const _Atomic uint32_t *word, uint32_t expected, int64_t deadline_ns) {
    return futex_wait(word, expected, deadline_ns, FUTEX_PRIVATE_FLAG);
}

int os_futex_wait_shared(const _Atomic uint32_t *word, uint32_t expected,
                         int64_t deadline_ns) {
    return futex_wait(word, expected, deadline_ns, 0);
}

void os_futex_wake(const _Atomic uint32_t *word, int count) {
    syscall(SYS_futex, word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, count, NULL, NULL, 0);
}

int os_futex_wake_shared(const _Atomic uint32_t *word, int count) {
    return (int)syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);
}

int os_futex_wait_both(const _Atomic uint32_t *private_word, uint32_t private_expected,
                       const _Atomic uint32_t *shared_word, uint32_t shared_expected,
                       int64_t deadline_ns) {
    struct timespec deadline = timespec_of(deadline_ns);
    struct waitv_entry entries[2] = {
        {private_expected, (uintptr_t)private_word, WAITV_SIZE_U32 | WAITV_PRIVATE, 0},
        {shared_expected, (uintptr_t)shared_word, WAITV_SIZE_U32, 0},
    };
    long result =
        syscall(SYS_futex_waitv, entries, 2, 0,
                deadline_ns == OS_NO_DEADLINE ? NULL : &deadline, CLOCK_MONOTONIC);
    if (result >= 0 || errno == EAGAIN)
        return 0;
    /* Whatever else keeps this call from us (a filter may say EPERM), we do without it. */
    return errno == ETIMEDOUT || errno == EINTR ? errno : ENOSYS;
}
