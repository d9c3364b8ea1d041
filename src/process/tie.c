/* A zygote may be killed, and its workers are then to end with all that their tasks started. Until
 * its first task the kernel sends a worker SIGKILL for that. From then on what the worker has started
 * would survive as a stranger's children; so the kernel sends TIE_SIGNAL. Who acts upon it:
 *
 * - The worker: its handler kills its children until it has none, since what they leave behind becomes
 *   its own in its turn, and then itself. So it does if the program is lost as well.
 * - The program, if the worker does not within a while, because it has been made to ignore signals
 *   (worker_set_limit() in workers_orphaned()): it kills the tree and then the worker.
 *
 * The handler runs amid anything: it neither allocates nor locks.
 */
#include "process/tie.h"

#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* One that nobody uses: the kernel itself never sends it. */
#ifdef SIGSTKFLT
#define TIE_SIGNAL SIGSTKFLT
#else
#define TIE_SIGNAL SIGPWR
#endif

/* The thread sanitizer runs none in a process that was forked from one with threads: there the kernel
 * goes on sending SIGKILL. */
#ifdef __SANITIZE_THREAD__
enum { HANDLERS_RUN = 0 };
#else
enum { HANDLERS_RUN = 1 };
#endif

enum {
    PATH_SIZE = 64,
    LOOKS_MAX = 1000,       /* at a worker whose other threads go on starting processes */
    PROGRAMS_TURN_MS = 1000 /* it acts sooner, if it lives */
};

/* ---- Killing what the process started ---- */

/* System calls as such: those of the C library may act upon a pthread_cancel(). */
static int open_file(const char *path) {
    return (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
}

/* A list of the kernel's: numbers, a blank after each. Returns how many could be signalled. */
static int kill_listed(int fd) {
    char text[512];
    long size, number = 0;
    int killed = 0;
    while ((size = syscall(SYS_read, fd, text, sizeof text)) > 0) {
        for (long i = 0; i < size; i++) {
            if (text[i] >= '0' && text[i] <= '9') {
                number = number * 10 + (text[i] - '0');
                continue;
            }
            killed += number > 0 && kill((pid_t)number, SIGKILL) == 0;
            number = 0;
        }
    }
    return killed;
}

/* -1: there is no reading the list, or no such thread any more. */
static int kill_children_of(const char *thread) {
    char path[PATH_SIZE] = "/proc/self/task/";
    if (strlen(thread) > 20)
        return 0;
    strcat(path, thread);
    strcat(path, "/children");
    int fd = open_file(path);
    if (fd < 0)
        return -1;
    int killed = kill_listed(fd);
    syscall(SYS_close, fd);
    return killed;
}

typedef struct directory_entry { /* as getdents64(2) writes it */
    uint64_t inode;
    int64_t offset;
    uint16_t size;
    uint8_t type;
    char name[];
} directory_entry;

/* Returns how many there were, zombies too; -1: there is no reading the lists. */
static int kill_children(void) {
    _Alignas(directory_entry) char entries[1024];
    int fd = open_file("/proc/self/task");
    int killed = 0, readable = 0;
    long size;
    if (fd < 0)
        return -1;
    while ((size = syscall(SYS_getdents64, fd, entries, sizeof entries)) > 0) {
        for (long at = 0; at < size;) {
            const directory_entry *entry = (const void *)&entries[at];
            int of_thread = entry->name[0] == '.' ? -1 : kill_children_of(entry->name);
            readable += of_thread >= 0;
            killed += of_thread > 0 ? of_thread : 0;
            at += entry->size;
        }
    }
    syscall(SYS_close, fd);
    return readable > 0 ? killed : -1;
}

static void rest(int milliseconds) {
    struct timespec time = {.tv_sec = milliseconds / 1000,
                            .tv_nsec = milliseconds % 1000 * 1000000};
    syscall(SYS_nanosleep, &time, NULL);
}

/* Those that die leave their children here. Two looks must find none: a thread that ends between hands
 * its own on to another. */
static void end_with_children(int signal) {
    (void)signal;
    syscall(SYS_close_range, 0, ~0U, 0); /* so that there are descriptors to read with */
    for (int looks = 0, empty = 0; empty < 2 && looks < LOOKS_MAX; looks++) {
        int killed = kill_children();
        if (killed < 0) {
            rest(PROGRAMS_TURN_MS);
            break;
        }
        empty = killed == 0 ? empty + 1 : 0;
        while (syscall(SYS_wait4, -1, NULL, __WALL | WNOHANG, NULL) > 0)
            ;
        if (killed > 0)
            rest(1);
    }
    kill(getpid(), SIGKILL);
}

/* ---- The tie ---- */

void tie_to_parent(pid_t parent_pid) {
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    if (getppid() != parent_pid) /* it ended before the kernel knew */
        _exit(EXIT_FAILURE);
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
}

void tie_with_children(void) {
    struct sigaction action = {.sa_handler = end_with_children};
    sigfillset(&action.sa_mask);
    if (HANDLERS_RUN && sigaction(TIE_SIGNAL, &action, NULL) == 0)
        prctl(PR_SET_PDEATHSIG, TIE_SIGNAL, 0, 0, 0);
}
