/* The port layer: everything that the engine asks of the operating system.
 *
 * Conventions: a function that can fail returns 0 or a positive errno value; nothing here sets a
 * pebble error; the locks that some take are innermost. Every descriptor is close-on-exec and, if it stays
 * open, registered (see "Engine descriptors"). Deadlines are absolute, in nanoseconds of the monotonic clock; OS_NO_DEADLINE
 * waits without limit. Signals that interrupt a call (EINTR) are dealt with inside. What threads of the
 * program call with a lock held (bells, messages, closing) is no point where they could be cancelled.
 *
 * In a build with PEBBLE_FAULT_INJECTION each call that may fail for want of a resource can be
 * made to: see "Fault injection" at the end.
 */
#ifndef PEBBLE_PLATFORM_H
#define PEBBLE_PLATFORM_H

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define OS_NO_DEADLINE INT64_MAX

/* ---- Time and processors ---- */

/* The monotonic clock. */
int64_t os_now_ns(void);

/* now + timeout_ns, or OS_NO_DEADLINE if that is beyond the clock. timeout_ns >= 0. */
int64_t os_deadline_after(int64_t timeout_ns);

/* Processors that this process may use: by affinity and control group quota, at least 1. Reads
 * files: not for hot paths. */
unsigned os_usable_processors(void);

/* True if another thread can make progress while this one spins: more than one usable processor.
 * Cached at the first call. */
bool os_spinning_helps(void);

/* The processor that the calling thread runs on now. */
unsigned os_current_processor(void);

/* Has the calling thread go on on another processor than its present one, if it may. */
void os_leave_processor(void);

/* Tells the processor that this is a spin loop. */
static inline void os_spin_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* ---- Memory ---- */

/* malloc, calloc and realloc, with fault injection. NULL if there is none. */
void *os_alloc(size_t size);
void *os_alloc_zeroed(size_t size);
void *os_realloc(void *memory, size_t size);
void os_free(void *memory);

/* A block of that size was or will be made, here or by the caller, and probably more. The C library
 * gives large blocks back to the system when they are freed, and the fresh pages of the next one
 * take longer than filling it, until it has seen a block so large freed; then it keeps such. This shows
 * it one of 4 MiB, once in a process. */
void os_expect_large_blocks(size_t size);

/* In the child of a fork, with one thread: gives back what the allocator keeps in reserve. The arenas
 * of threads that are not there any more would else go on to grow into address space that is theirs
 * already, past any RLIMIT_AS. */
void os_release_unused_memory(void);

/* ---- Futexes ----
 * A word that threads (or, if shared, processes) sleep on. wait returns 0 when woken, when the
 * word differed from expected, and for no reason at all: the caller looks again. It returns
 * ETIMEDOUT at the deadline, and EINTR when a signal handler ran. Those that are interruptible return it
 * also when the calling thread has an interrupt word and that is not 0, be the deadline over or not: their
 * callers give up then. No other does: a worker has the word of the thread that it was forked from, or of
 * its task. */

/* The word that ends the calling thread's interruptible sleeps; NULL: none. */
void os_futex_set_interrupt(const _Atomic uint32_t *word);

int os_futex_wait(const _Atomic uint32_t *word, uint32_t expected, int64_t deadline_ns);
int os_futex_wait_interruptible(const _Atomic uint32_t *word, uint32_t expected,
                                int64_t deadline_ns);
int os_futex_wait_shared(const _Atomic uint32_t *word, uint32_t expected,
                         int64_t deadline_ns);
void os_futex_wake(const _Atomic uint32_t *word, int count);
int os_futex_wake_shared(const _Atomic uint32_t *word, int count); /* how many slept */

/* Sleeps, interruptibly, on a private and a shared word at once. ENOSYS where the kernel cannot (before 5.16). */
int os_futex_wait_both(const _Atomic uint32_t *private_word, uint32_t private_expected,
                       const _Atomic uint32_t *shared_word, uint32_t shared_expected,
                       int64_t deadline_ns);

/* ---- Engine descriptors ----
 * A set of the descriptors that the engine holds, so that a forked child can close them all. It
 * may be read in the child of a fork at any moment: bits are set and cleared atomically. */

void os_fd_register(int fd);
bool os_fd_is_registered(int fd);

/* Unregisters and closes; -1 is fine. */
void os_fd_close(int fd);

/* Of all these, the children that the calling thread forks next keep so many, until os_fd_keep_none(); they
 * are not registered there. OS_KEPT_MAX at most. */
enum { OS_KEPT_MAX = 4 };
void os_fd_keep(const int *fds, size_t count);
void os_fd_keep_none(void);

/* Around every fork, in the program: descriptors that are closed meanwhile are closed when it has ended. */
void os_fd_fork_begins(void);
void os_fd_fork_ended(void);
uint32_t os_fd_forks_begun(void);
bool os_fd_fork_is_under_way(void);

/* In a forked child: closes all that the parent registered, but what it keeps. */
void os_fd_close_inherited(void);

/* ---- Making what children are not to have ----
 * Descriptors (but for those of this process while it has one thread) and shared mappings are made between
 * these. Nothing there may block. */

void os_making_begins(void);
void os_making_ended(void);

/* Registers what was just made. */
void os_fd_made(int fd);

/* In a forked child, when its descriptors are closed: drops the channel that was just being made. */
void os_making_drop_inherited(void);

/* Something was just being made when this process was forked, which it may have still; a channel, too, since
 * there was no way to look for one. */
bool os_making_was_inherited(void);
bool os_making_kept_channel(void);

/* A descriptor and the file that it stands for. */
typedef struct os_fd_note {
    int64_t fd;
    uint64_t device, inode, number;
} os_fd_note;

/* What all threads make while one forks. */
enum { OS_FD_NOTES_MAX = 2048 };
typedef struct os_fd_notes {
    struct os_fd_notes *next;
    os_fd_note *notes; /* room for OS_FD_NOTES_MAX */
    size_t count;
    bool incomplete; /* it was more, or something could not be told from others */
    bool any;        /* something was made: if not, the child needs no notes */
} os_fd_notes;

/* Around a fork, in the parent. What is just being made at the end is waited for, and is noted. */
void os_fd_notes_begin(os_fd_notes *notes);
void os_fd_notes_end(os_fd_notes *notes);

/* In the child: closes it if it was inherited. */
void os_fd_close_noted(const os_fd_note *note);

/* ---- Events ----
 * A bell: any process that holds it rings, one waits in epoll. Edge triggered, never read. */

int os_bell_new(int *fd);
void os_bell_ring(int fd);

/* Gives a bell a number that what a task opens does not get by chance, even if it has closed all there
 * were before: bells cannot be told from each other. Returns it; the old one is closed. */
int os_bell_put_aside(int fd);

/* A number that a bell keeps, and that a file of another kind under its descriptor does not have.
 * 0: there is none. */
uint64_t os_bell_identity(int fd);

/* ---- Shared memory ----
 * A memfd that can be neither shrunk nor grown, mapped once and not inherited over fork. */

/* The names of those that are channels. By them a forked child knows what is not its own. */
#define OS_CHANNEL_DOWN "pebble-down"
#define OS_CHANNEL_UP "pebble-up"

/* Makes and maps size bytes (a multiple of the page size), readable and writable, zeroed. If
 * others_read_only, every mapping made after this one can only be read. */
int os_shared_new(const char *name, size_t size, bool others_read_only, int *fd,
                  void **memory);

/* Makes it of bytes that do not change any more; not mapped here. */
int os_shared_of_bytes(const char *name, const void *bytes, size_t size, int *fd);

/* Maps what a peer made; checks that it is at least size bytes. */
int os_shared_map(int fd, size_t size, bool writable, void **memory);
void os_shared_unmap(void *memory, size_t size);

/* ---- Polling: epoll with an exact timer ---- */

typedef struct os_poller os_poller;

typedef struct os_poller_event {
    void *context;
    bool readable;
    bool writable;
    bool hung_up;
} os_poller_event;

int os_poller_new(os_poller **poller);
void os_poller_free(os_poller *poller);

/* Reports fd with context when it can be read (a bell: at each ring). */
int os_poller_add(os_poller *poller, int fd, void *context);
int os_poller_add_bell(os_poller *poller, int fd, void *context);

/* Has the bell be reported, rung or not. Does not write there. */
void os_poller_ring(os_poller *poller, int fd, void *context);

/* Changes whether fd is reported when it can be written. */
int os_poller_want_write(os_poller *poller, int fd, void *context, bool want);
void os_poller_remove(os_poller *poller, int fd);

/* Sleeps until something is ready, the timer's deadline or a wake. Returns the number of events
 * (0: timer or wake). */
size_t os_poller_wait(os_poller *poller, os_poller_event *events, size_t capacity);

/* Sets the absolute deadline at which the poller wakes, OS_NO_DEADLINE for none. Any thread. */
void os_poller_set_timer(os_poller *poller, int64_t deadline_ns);

/* Wakes the poller. Any thread. */
void os_poller_wake(os_poller *poller);

/* ---- Processes ---- */

/* A descriptor that stands for the process: readable when it has ended. */
int os_process_open(pid_t pid, int *fd);

/* Sends a signal; ESRCH if the process has ended. */
int os_process_signal(int process_fd, int signal);
bool os_process_ended(int process_fd);

/* ---- Messages: a pair of connected sockets that keep message boundaries ---- */

#define OS_MESSAGE_MAX_FDS 4

int os_message_pair(int fds[2]);

/* EAGAIN if it cannot be sent now, EPIPE if the peer is gone. */
int os_message_send(int fd, const void *data, size_t size, const int *fds,
                    size_t fd_count);

/* Receives one message, at most capacity bytes. EAGAIN if there is none, EPIPE if the peer is
 * gone. Descriptors that do not fit are closed. */
int os_message_receive(int fd, void *data, size_t capacity, size_t *size, int *fds,
                       size_t fd_capacity, size_t *fd_count);

/* ---- Threads ---- */

/* Starts a thread of the engine: every signal is blocked in it, but those of faults. EAGAIN if there
 * can be no more. */
int os_thread_start(void (*function)(void *), void *context, const char *name);

/* The same for a thread that runs functions of the user: it has the caller's signal mask. */
int os_thread_start_for_user(void (*function)(void *), void *context, const char *name);

/* Names the calling thread; in the main thread: the process, as ps and top show it. */
void os_thread_set_name(const char *name);

/* ---- Fault injection ---- */

typedef enum os_fault {
    OS_FAULT_NONE,
    OS_FAULT_ALLOC,   /* ENOMEM */
    OS_FAULT_SHARED,  /* memfd, mmap and what is done with them: ENOMEM */
    OS_FAULT_FD,      /* what gives a descriptor, or adds one to a poller: EMFILE */
    OS_FAULT_FORK,    /* EAGAIN */
    OS_FAULT_THREAD,  /* EAGAIN */
    OS_FAULT_MESSAGE, /* sending on a socket: ENOBUFS */
    OS_FAULT_KINDS
} os_fault;

#ifdef PEBBLE_FAULT_INJECTION
/* From now on the nth call (1: the next) of this kind in this process fails, and all that follow
 * it if repeat. OS_FAULT_NONE disarms. */
__attribute__((visibility("default"))) void pebble_test_fault(os_fault kind, unsigned nth,
                                                              bool repeat);
/* The same, counting in memory that several processes may share, from what is there. */
__attribute__((visibility("default"))) void pebble_test_fault_shared(
    os_fault kind, unsigned nth, bool repeat, _Atomic unsigned *calls);
/* How many calls of the armed kind there have been since it was armed. */
__attribute__((visibility("default"))) unsigned pebble_test_fault_calls(void);
bool os_fault_hits(os_fault kind);
#else
#define os_fault_hits(kind) false
#endif

/* What a call of the system gives; or, if it is the one to fail, that value with that errno. */
#define os_attempt(kind, error, failed, call)                                            \
    (os_fault_hits(kind) ? (errno = (error), (failed)) : (call))

#endif
