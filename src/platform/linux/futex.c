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

static _Thread_local const _Atomic uint32_t *interrupt;

void os_futex_set_interrupt(const _Atomic uint32_t *word) {
    interrupt = word;
}

static struct waitv_entry entry_of(const _Atomic uint32_t *word, uint32_t expected,
                                   bool is_private) {
    return (struct waitv_entry){expected, (uintptr_t)word,
                                WAITV_SIZE_U32 | (is_private ? WAITV_PRIVATE : 0), 0};
}

/* Sleeps on all of the words, of which there is room for one more. */
static int wait_for_any(struct waitv_entry *entries, unsigned count, int64_t deadline_ns) {
    struct timespec deadline = timespec_of(deadline_ns);
    if (interrupt != NULL)
        entries[count++] = entry_of(interrupt, 0, true);
    long result =
        syscall(SYS_futex_waitv, entries, count, 0,
                deadline_ns == OS_NO_DEADLINE ? NULL : &deadline, CLOCK_MONOTONIC);
    int error = errno;
    if (interrupt != NULL && atomic_load(interrupt) != 0)
        return EINTR;
    if (result >= 0 || error == EAGAIN)
        return 0;
    /* Whatever else keeps this call from us (a filter may say EPERM), we do without it. */
    return error == ETIMEDOUT || error == EINTR ? error : ENOSYS;
}

static int wait_for_one(const _Atomic uint32_t *word, uint32_t expected,
                        int64_t deadline_ns, int private_flag) {
    struct timespec deadline = timespec_of(deadline_ns);
    long result = syscall(SYS_futex, word, FUTEX_WAIT_BITSET | private_flag, expected,
                          deadline_ns == OS_NO_DEADLINE ? NULL : &deadline, NULL,
                          FUTEX_BITSET_MATCH_ANY);
    return result < 0 && (errno == ETIMEDOUT || errno == EINTR) ? errno : 0;
}

int os_futex_wait(const _Atomic uint32_t *word, uint32_t expected, int64_t deadline_ns) {
    return wait_for_one(word, expected, deadline_ns, FUTEX_PRIVATE_FLAG);
}

int os_futex_wait_interruptible(const _Atomic uint32_t *word, uint32_t expected,
                                int64_t deadline_ns) {
    if (interrupt != NULL) {
        struct waitv_entry entries[2] = {entry_of(word, expected, true)};
        int error = wait_for_any(entries, 1, deadline_ns);
        if (error != ENOSYS)
            return error;
    }
    return os_futex_wait(word, expected, deadline_ns);
}

int os_futex_wait_shared(const _Atomic uint32_t *word, uint32_t expected,
                         int64_t deadline_ns) {
    return wait_for_one(word, expected, deadline_ns, 0);
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
    struct waitv_entry entries[3] = {entry_of(private_word, private_expected, true),
                                     entry_of(shared_word, shared_expected, false)};
    return wait_for_any(entries, 2, deadline_ns);
}
