/* What threads are just making while the process forks: what its parent notes and tells a child, and what a
 * child finds by itself. Zygotes: tests/faults/reach.c. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "platform/platform.h"
#include "support.h"

static bool is_open(int fd) {
    return fcntl(fd, F_GETFD) >= 0;
}

static os_fd_note told[2][OS_FD_NOTES_MAX];

static int make_amid_forks(void *unused) {
    os_fd_notes first = {.notes = told[0]}, second = {.notes = told[1]};
    int fds[2], bell_fd, early_fd, late_fd;
    (void)unused;
    os_fd_notes_begin(&first);
    os_fd_notes_begin(&second);
    assert_int_equal(os_bell_new(&early_fd), 0); /* in its set when it forks */
    os_fd_fork_begins();
    assert_int_equal(os_message_pair(fds), 0);
    os_fd_fork_ended();
    os_fd_notes_end(&first);
    os_fd_fork_begins();
    assert_int_equal(os_bell_new(&bell_fd), 0);
    os_fd_fork_ended();
    assert_int_equal(os_bell_new(&late_fd), 0);
    os_fd_notes_end(&second);
    assert_true(first.any && second.any);
    assert_false(first.incomplete || second.incomplete);
    assert_int_equal(first.count, 2);
    assert_int_equal(second.count, 3);
    assert_memory_equal(told[0], told[1], 2 * sizeof told[0][0]);
    const int made[] = {fds[0], fds[1], bell_fd};
    for (int i = 0; i < 3; i++)
        assert_int_equal(told[1][i].fd, made[i]);
    os_fd_notes_begin(&first);
    os_fd_notes_end(&first);
    assert_true(first.count == 0 && !first.any);
    return 0;
}

/* What is made amid two forks is told to both children. In a process of its own, where nothing else is. */
static void test_made_amid_a_fork(void **state) {
    (void)state;
    assert_int_equal(program_wait(program_start(make_amid_forks, NULL)), 0);
}

static os_fd_notes notes_of(int fd) {
    os_fd_notes notes = {.notes = told[0]};
    os_fd_notes_begin(&notes);
    os_fd_fork_begins();
    os_making_begins();
    os_fd_made(fd);
    os_making_ended();
    os_fd_fork_ended();
    os_fd_notes_end(&notes);
    return notes;
}

static os_fd_note note_of(int fd) {
    os_fd_notes notes = notes_of(fd);
    assert_int_equal(notes.count, 1);
    assert_false(notes.incomplete);
    return notes.notes[0];
}

static int other_bell(void) {
    return eventfd(0, EFD_CLOEXEC);
}

static int other_process(void) {
    return (int)syscall(SYS_pidfd_open, getppid(), 0);
}

static int other_socket(void) {
    return socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
}

/* A child closes what it was told, under that number, but not what it has opened itself: the same kind of
 * file, or registered. */
static void check_closing(int fd, int (*open_other)(void)) {
    os_fd_note note = note_of(fd);
    int its_copy = dup(fd), other = open_other();
    os_fd_close_noted(&note);
    assert_true(is_open(fd));
    note.fd = other;
    os_fd_close_noted(&note);
    assert_true(is_open(other));
    note.fd = its_copy;
    os_fd_close_noted(&note);
    assert_false(is_open(its_copy));
    os_fd_close_noted(&note); /* there is none any more */
    close(other);
    os_fd_close(fd);
}

static void test_child_closes_what_it_was_told(void **state) {
    int fds[2], bell_fd, process_fd;
    (void)state;
    assert_int_equal(os_message_pair(fds), 0);
    assert_int_equal(os_bell_new(&bell_fd), 0);
    assert_int_equal(os_process_open(getpid(), &process_fd), 0);
    check_closing(fds[0], other_socket);
    check_closing(fds[1], other_socket);
    check_closing(bell_fd, other_bell);
    check_closing(process_fd, other_process);
}

typedef struct gate {
    counter entered, leave;
} gate;

static int wait_for_leave(void *context) {
    gate *at = context;
    counter_add(&at->entered, 1);
    return counter_wait(&at->leave, 1) ? 0 : 1;
}

/* A process that has been reaped by the time has no number any more. */
static void test_child_closes_a_reaped_process(void **state) {
    gate *at = shared_memory(sizeof *at);
    int process_fd;
    (void)state;
    pid_t child = program_start(wait_for_leave, at);
    counter_expect(&at->entered, 1);
    assert_int_equal(os_process_open(child, &process_fd), 0);
    os_fd_note note = note_of(process_fd);
    counter_add(&at->leave, 1);
    assert_int_equal(program_wait(child), 0);
    note.fd = dup(process_fd);
    os_fd_close_noted(&note);
    assert_false(is_open((int)note.fd));
    os_fd_close(process_fd);
}

enum { FDS_MAX = 64 };

/* Without a number to look with nothing can be told from others. */
static int note_with_full_table(void *unused) {
    const struct rlimit few = {FDS_MAX, FDS_MAX};
    int bell_fd, last = -1, next;
    (void)unused;
    if (os_bell_new(&bell_fd) != 0 || setrlimit(RLIMIT_NOFILE, &few) != 0)
        return 1;
    while ((next = dup(bell_fd)) >= 0)
        last = next;
    os_fd_notes notes = notes_of(bell_fd);
    if (!notes.incomplete || notes.count != 0)
        return 2;
    close(last);
    return notes_of(bell_fd).incomplete ? 3 : 0;
}

static void test_full_table_is_not_noted(void **state) {
    (void)state;
    assert_int_equal(program_wait(program_start(note_with_full_table, NULL)), 0);
}

typedef struct memory_by_name {
    int fd;
    char *memory;
} memory_by_name;

enum { NAMED_SIZE = 1 << 20 };

static memory_by_name make_by_name(const char *name, int flags) {
    memory_by_name made = {.fd = memfd_create(name, MFD_CLOEXEC)};
    assert_int_equal(ftruncate(made.fd, NAMED_SIZE), 0);
    made.memory = mmap(NULL, NAMED_SIZE, PROT_READ | PROT_WRITE, flags, made.fd, 0);
    assert_ptr_not_equal(made.memory, MAP_FAILED);
    return made;
}

static bool is_mapped(const memory_by_name *memory) {
    unsigned char resident[1];
    return mincore(memory->memory, 1, resident) == 0;
}

enum { CHANNELS = 2, NAMED = 5 };
static memory_by_name named[NAMED];

/* How many channels it has, mapped or open, and how much of the others it lacks. */
static int count_named(void *unused) {
    int have = 0, lack = 0;
    (void)unused;
    for (int i = 0; i < NAMED; i++) {
        int count = is_mapped(&named[i]) + is_open(named[i].fd);
        have += i < CHANNELS ? count : 0;
        lack += i < CHANNELS ? 0 : 2 - count;
    }
    return have + 10 * lack;
}

/* With no descriptor left but those that the child closes. */
static int fork_with_full_table(void *unused) {
    const struct rlimit few = {FDS_MAX, FDS_MAX};
    int bell_fd;
    (void)unused;
    if (os_bell_new(&bell_fd) != 0 || setrlimit(RLIMIT_NOFILE, &few) != 0)
        return 1;
    while (dup(bell_fd) >= 0)
        ;
    os_making_begins();
    int found = program_wait(program_start(count_named, NULL));
    os_making_ended();
    return found;
}

/* A fork in the middle of making a channel: what is there of it is not registered, and would be inherited.
 * Data of a worker's and memory of the program's own is. */
static void test_child_drops_a_channel(void **state) {
    (void)state;
    named[0] = make_by_name("pebble-up", MAP_SHARED);
    named[1] = make_by_name("pebble-down", MAP_SHARED);
    named[2] = make_by_name("pebble-data", MAP_PRIVATE);
    named[3] = make_by_name("pebble-data", MAP_SHARED);
    named[4] = make_by_name("pebble-upper", MAP_SHARED);
    assert_int_equal(program_wait(program_start(count_named, NULL)), 2 * CHANNELS);
    os_making_begins();
    assert_int_equal(program_wait(program_start(count_named, NULL)), 0);
    os_making_ended();
    assert_int_equal(program_wait(program_start(fork_with_full_table, NULL)), 0);
    for (int i = 0; i < NAMED; i++) {
        assert_true(is_mapped(&named[i]) && is_open(named[i].fd));
        munmap(named[i].memory, NAMED_SIZE);
        close(named[i].fd);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        supported_test(test_made_amid_a_fork),
        supported_test(test_child_closes_what_it_was_told),
        supported_test(test_child_closes_a_reaped_process),
        supported_test(test_full_table_is_not_noted),
        supported_test(test_child_drops_a_channel),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests_name("making", tests, NULL, NULL);
}
