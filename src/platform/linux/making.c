/* What is being made while a process forks.
 *
 * A descriptor is put into the set of the engine's (descriptor.c), and a mapping taken from what children
 * inherit, when it is there. If another thread forks between, the child has it, and does not know of it.
 * Making cannot wait for forks: a fork may block (in handlers of pthread_atfork(), on a lock of the C
 * library's) on what the thread that makes something holds. So the child finds out, and drops it:
 *
 * - Things are made one at a time, under making_lock, and making says that one is. The kernel copies the
 *   memory of a process while it holds the lock that its page faults and mappings need, and lets go of it
 *   when nothing can be written any more without a fault; so the child's memory is that of one instant. In a
 *   child that has what it does not know of, making is true.
 * - Then it looks through what it has: channels can be told by their names.
 * - Other descriptors cannot. A zygote is told them by its parent (zygote_client.c), which notes what is made
 *   while a fork is under way. As what is being made waits for nothing, it can be waited for at the end. Other
 *   children may keep such a one until they execute something.
 *
 * No memory is allocated in the child: the allocator's own handlers may not have run yet. With making_lock held
 * no lock is taken but the C library's, for the memory of the set.
 *
 * Not meant are files that are read and closed at once, as those of /proc: a child may keep one. */
#include "platform/platform.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t making_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic bool making;
static int makers_cancel_state;  /* under making_lock */
static os_fd_notes *takers;      /* under making_lock */
static uint32_t forks_before;    /* under making_lock: when making began, */
static bool began_amid_a_fork;   /* and whether one was under way then */
static bool inherited_something; /* perhaps */
static bool kept_channel;        /* perhaps: it could not look */

void os_making_begins(void) {
    int cancel_state;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
    pthread_mutex_lock(&making_lock);
    makers_cancel_state = cancel_state;
    atomic_store(&making, true);
    forks_before = os_fd_forks_begun(); /* first, so that none is overlooked */
    began_amid_a_fork = os_fd_fork_is_under_way();
}

void os_making_ended(void) {
    int error = errno, cancel_state = makers_cancel_state;
    for (os_fd_notes *notes = takers; notes != NULL; notes = notes->next)
        notes->any = true;
    atomic_store(&making, false);
    pthread_mutex_unlock(&making_lock);
    pthread_setcancelstate(cancel_state, NULL);
    errno = error;
}

/* ---- Notes ---- */

static const uint64_t process_reaped = (uint64_t)-1;

/* All eventfds have the same inode, and so have pidfds before Linux 6.9: their number, or process. 0: it cannot be
 * read. */
static uint64_t number_of(int fd) {
    char path[48], text[512];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    int info_fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = info_fd >= 0 ? read(info_fd, text, sizeof text - 1) : 0;
    if (info_fd >= 0)
        close(info_fd);
    text[size > 0 ? size : 0] = '\0';
    const char *event = strstr(text, "\neventfd-id:"), *process = strstr(text, "\nPid:");
    const char *line = event != NULL ? event : process;
    return line != NULL ? strtoull(strchr(line, ':') + 1, NULL, 10) : 0;
}

/* False: it cannot be told from others. */
static bool identify(int fd, os_fd_note *note) {
    struct stat status;
    if (fstat(fd, &status) != 0)
        return false;
    bool is_typed = (status.st_mode & S_IFMT) != 0;
    *note = (os_fd_note){.fd = fd,
                         .device = status.st_dev,
                         .inode = status.st_ino,
                         .number = is_typed ? 0 : number_of(fd)};
    return is_typed || note->number != 0;
}

static void take_note(os_fd_notes *notes, const os_fd_note *note) {
    if (note == NULL || notes->count == OS_FD_NOTES_MAX)
        notes->incomplete = true;
    else
        notes->notes[notes->count++] = *note;
}

void os_fd_made(int fd) {
    os_fd_note note;
    os_fd_register(fd);
    if (takers == NULL || (!began_amid_a_fork && os_fd_forks_begun() == forks_before))
        return; /* a fork that begins from now on knows of it */
    bool identified = identify(fd, &note);
    for (os_fd_notes *notes = takers; notes != NULL; notes = notes->next)
        take_note(notes, identified ? &note : NULL);
}

void os_fd_notes_begin(os_fd_notes *notes) {
    notes->count = 0;
    notes->incomplete = false;
    pthread_mutex_lock(&making_lock);
    notes->any = false;
    notes->next = takers;
    takers = notes;
    pthread_mutex_unlock(&making_lock);
}

void os_fd_notes_end(os_fd_notes *notes) {
    pthread_mutex_lock(&making_lock);
    os_fd_notes **at = &takers;
    while (*at != notes)
        at = &(*at)->next;
    *at = notes->next;
    pthread_mutex_unlock(&making_lock);
}

/* ---- In the child ---- */

void os_fd_close_noted(const os_fd_note *note) {
    os_fd_note found;
    int fd = (int)note->fd;
    if (!os_fd_is_registered(fd) && identify(fd, &found) &&
        found.device == note->device && found.inode == note->inode &&
        (found.number == note->number || found.number == process_reaped))
        close(fd);
}

static bool is_channel(const char *name) {
    return strcmp(name, "/memfd:" OS_CHANNEL_DOWN " (deleted)") == 0 ||
           strcmp(name, "/memfd:" OS_CHANNEL_UP " (deleted)") == 0;
}

static void close_if_channel(int fd) {
    char path[48], target[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(path, target, sizeof target - 1);
    target[length > 0 ? length : 0] = '\0';
    if (is_channel(target))
        close(fd);
}

/* A worker has its own open when it is forked, but nothing is being made then: a zygote has one thread. */
static bool close_channels(void) {
    static _Alignas(struct dirent64) char entries[4096];
    int directory = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        return false;
    ssize_t size;
    while ((size = getdents64(directory, entries, sizeof entries)) > 0) {
        for (ssize_t at = 0; at < size;) {
            struct dirent64 *entry = (struct dirent64 *)(void *)(entries + at);
            if (entry->d_name[0] != '.')
                close_if_channel(atoi(entry->d_name));
            at += entry->d_reclen;
        }
    }
    close(directory);
    return size == 0;
}

/* A line of /proc/self/maps: START-END ACCESS OFFSET DEVICE INODE NAME, where ACCESS is like rw-s. */
static void unmap_if_channel(const char *line) {
    char *rest;
    const char *name = strchr(line, '/');
    unsigned long start = strtoul(line, &rest, 16), end = strtoul(rest + 1, &rest, 16);
    if (name != NULL && is_channel(name) && rest[4] == 's')
        munmap((void *)start, end - start); /* NOLINT: the kernel's text */
}

static bool unmap_channels(void) {
    static char text[8192]; /* longer than a line */
    size_t kept = 0;
    ssize_t size;
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    while ((size = read(fd, text + kept, sizeof text - 1 - kept)) > 0) {
        char *line = text, *end;
        text[kept + (size_t)size] = '\0';
        for (; (end = strchr(line, '\n')) != NULL; line = end + 1) {
            *end = '\0';
            unmap_if_channel(line);
        }
        kept = strlen(line);
        memmove(text, line, kept);
    }
    close(fd);
    return size == 0 && kept == 0;
}

void os_making_drop_inherited(void) {
    making_lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    takers = NULL;
    inherited_something = atomic_exchange(&making, false);
    kept_channel = inherited_something && !(unmap_channels() && close_channels());
}

bool os_making_was_inherited(void) {
    return inherited_something;
}

bool os_making_kept_channel(void) {
    return kept_channel;
}
