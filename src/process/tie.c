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

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* One that nobody uses: the kernel itself never sends it. */
#ifdef SIGSTKFLT
#define TIE_SIGNAL SIGSTKFLT
#else
#define TIE_SIGNAL SIGPWR
#endif

enum { PATH_SIZE = 64 };

/* ---- Killing what the process started ---- */

/* A list of the kernel's: numbers, a blank after each. Returns how many could be signalled. */
static int kill_listed(int fd) {
    char text[512];
    ssize_t size;
    long number = 0;
    int killed = 0;
    while ((size = read(fd, text, sizeof text)) > 0) {
        for (ssize_t i = 0; i < size; i++) {
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

static int kill_children_of(const char *thread) {
    char path[PATH_SIZE] = "/proc/self/task/";
    if (strlen(thread) > 20)
        return 0;
    strcat(path, thread);
    strcat(path, "/children");
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    int killed = kill_listed(fd);
    close(fd);
    return killed;
}

typedef struct directory_entry { /* as getdents64(2) writes it */
    uint64_t inode;
    int64_t offset;
    uint16_t size;
    uint8_t type;
    char name[];
} directory_entry;

static int kill_children(void) {
    _Alignas(directory_entry) char entries[1024];
    int fd = open("/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int killed = 0;
    long size = -1;
    while (fd >= 0 && (size = syscall(SYS_getdents64, fd, entries, sizeof entries)) > 0) {
        for (long at = 0; at < size;) {
            const directory_entry *entry = (const void *)&entries[at];
            if (entry->name[0] != '.')
                killed += kill_children_of(entry->name);
            at += entry->size;
        }
    }
    if (fd >= 0)
        close(fd);
    return killed;
}

/* Those that die leave their children here: nothing is left when there is none to wait for. */
static void end_with_children(int signal) {
    (void)signal;
    while (kill_children() > 0) {
        if (waitpid(-1, NULL, __WALL) < 0 && errno != EINTR)
            break;
        while (waitpid(-1, NULL, __WALL | WNOHANG) > 0)
            ;
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
    if (sigaction(TIE_SIGNAL, &action, NULL) == 0)
        prctl(PR_SET_PDEATHSIG, TIE_SIGNAL, 0, 0, 0);
}
