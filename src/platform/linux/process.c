/* Processes through pidfds: a number may be another process by the time it is used, a pidfd never. */
#include "platform/platform.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif

int os_process_open(pid_t pid, int *fd) {
    os_making_begins();
    int opened = (int)os_attempt(OS_FAULT_FD, EMFILE, -1,
                                 syscall(SYS_pidfd_open, pid, 0)); /* close-on-exec */
    if (opened >= 0)
        os_fd_made(opened);
    os_making_ended();
    if (opened < 0) /* EPERM: of a filter that does not know the call */
        return errno == EPERM ? ENOSYS : errno;
    *fd = opened;
    return 0;
}

int os_process_signal(int process_fd, int signal) {
    return syscall(SYS_pidfd_send_signal, process_fd, signal, NULL, 0) == 0 ? 0 : errno;
}

bool os_process_ended(int process_fd) {
    struct pollfd entry = {.fd = process_fd, .events = POLLIN};
    return poll(&entry, 1, 0) == 1;
}
