/* Shared memory (memfd) and bells (eventfd). */
#include "platform/platform.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

enum { ASIDE = 500 }; /* a number: files get the lowest that are free */

static int map_for_this_process(int fd, size_t size, int protection, void **memory) {
    void *mapped = os_attempt(OS_FAULT_SHARED, ENOMEM, MAP_FAILED,
                              mmap(NULL, size, protection, MAP_SHARED, fd, 0));
    if (mapped == MAP_FAILED)
        return errno;
    /* A forked child has no business in its parent's channels. */
    int advised =
        os_attempt(OS_FAULT_SHARED, ENOMEM, -1, madvise(mapped, size, MADV_DONTFORK));
    if (advised != 0) {
        int error = errno;
        munmap(mapped, size);
        return error;
    }
    *memory = mapped;
    return 0;
}

static int map(int fd, size_t size, int protection, void **memory) {
    os_making_begins();
    int error = map_for_this_process(fd, size, protection, memory);
    os_making_ended();
    return error;
}

static int memfd_new(const char *name) {
    os_making_begins();
    int made = os_attempt(OS_FAULT_SHARED, ENOMEM, -1,
                          memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (made >= 0)
        os_fd_made(made);
    os_making_ended();
    return made;
}

/* Memory is promised only as far as it is there: each page is asked for when it is touched, and what is not
 * there then is SIGBUS. */
static bool overcommit_is_strict(void) {
    static _Atomic int known; /* 1: no, 2: yes */
    char mode = '0';
    if (atomic_load(&known) == 0) {
        os_making_begins();
        int fd = open("/proc/sys/vm/overcommit_memory", O_RDONLY | O_CLOEXEC);
        if (fd >= 0)
            os_fd_made(fd);
        os_making_ended();
        if (fd >= 0 && read(fd, &mode, 1) != 1)
            mode = '0';
        os_fd_close(fd);
        atomic_store(&known, mode == '2' ? 2 : 1);
    }
    return atomic_load(&known) == 2;
}

/* 0, or an errno value. */
static int set_size(int fd, size_t size) {
    if (os_attempt(OS_FAULT_SHARED, ENOMEM, -1, ftruncate(fd, (off_t)size)) != 0)
        return errno;
    int error = overcommit_is_strict() ? posix_fallocate(fd, 0, (off_t)size) : 0;
    return error == ENOSPC ? ENOMEM : error;
}

int os_shared_new(const char *name, size_t size, bool others_read_only, int *fd,
                  void **memory) {
    int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    int made = memfd_new(name);
    if (made < 0)
        return errno;
    int error = set_size(made, size);
    if (error == 0)
        error = map(made, size, PROT_READ | PROT_WRITE, memory);
    if (error == 0 && others_read_only)
        seals |= F_SEAL_FUTURE_WRITE;
    if (error == 0 &&
        os_attempt(OS_FAULT_SHARED, ENOMEM, -1, fcntl(made, F_ADD_SEALS, seals)) != 0) {
        error = errno;
        munmap(*memory, size);
        *memory = NULL;
    }
    if (error != 0) {
        os_fd_close(made);
        return error;
    }
    *fd = made;
    return 0;
}

int os_shared_of_bytes(const char *name, const void *bytes, size_t size, int *fd) {
    int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL;
    int made = memfd_new(name);
    if (made < 0)
        return errno;
    int error = 0;
    for (size_t at = 0; at < size && error == 0;) {
        ssize_t written = os_attempt(OS_FAULT_SHARED, ENOSPC, -1,
                                     write(made, (const char *)bytes + at, size - at));
        if (written >= 0)
            at += (size_t)written;
        else if (errno != EINTR)
            error = errno;
    }
    if (error == 0 &&
        os_attempt(OS_FAULT_SHARED, ENOMEM, -1, fcntl(made, F_ADD_SEALS, seals)) != 0)
        error = errno;
    if (error != 0)
        os_fd_close(made);
    else
        *fd = made;
    return error;
}

int os_shared_map(int fd, size_t size, bool writable, void **memory) {
    struct stat status;
    if (fstat(fd, &status) != 0)
        return errno;
    if ((size_t)status.st_size < size)
        return EINVAL;
    return map(fd, size, writable ? PROT_READ | PROT_WRITE : PROT_READ, memory);
}

void os_shared_unmap(void *memory, size_t size) {
    if (memory != NULL)
        munmap(memory, size);
}

int os_bell_new(int *fd) {
    os_making_begins();
    int made = os_attempt(OS_FAULT_FD, EMFILE, -1, eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (made >= 0)
        os_fd_made(made);
    os_making_ended();
    if (made < 0)
        return errno;
    *fd = made;
    return 0;
}

void os_bell_ring(int fd) {
    uint64_t one = 1, rings;
    int cancel_state;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
    /* EAGAIN: the counter is full, since a task has written there; no write would be an event any
     * more. */
    while (write(fd, &one, sizeof one) < 0 &&
           (errno == EINTR || (errno == EAGAIN && read(fd, &rings, sizeof rings) > 0)))
        ;
    pthread_setcancelstate(cancel_state, NULL);
}

int os_bell_put_aside(int fd) {
    struct rlimit limit;
    int lowest = ASIDE;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur / 2 < ASIDE)
        lowest = (int)(limit.rlim_cur / 2);
    int aside = os_attempt(OS_FAULT_FD, EMFILE, -1, fcntl(fd, F_DUPFD_CLOEXEC, lowest));
    if (aside < 0)
        return fd;
    close(fd);
    return aside;
}

uint64_t os_bell_identity(int fd) {
    struct stat status;
    if (fstat(fd, &status) != 0)
        return 0;
    return (uint64_t)status.st_dev << 32 ^ (uint64_t)status.st_ino ^ UINT64_C(1) << 63;
}
