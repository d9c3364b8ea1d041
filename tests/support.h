/* What the test programs share: events between processes, processes of a program's own, and the
 * check that a test leaves nothing behind.
 *
 * Every wait here has the same deadline, DEADLINE_NS, long enough for any sanitizer: a test that
 * reaches it has failed. Tasks in workers must not use cmocka's asserts (they would end the
 * worker's copy of the test), but tell by their results or by counters in shared memory.
 *
 * A test program runs as the child of a process, the orphanage, that adopts what escapes the engine's
 * zygote, so that the check finds it.
 */
#ifndef TESTS_SUPPORT_H
#define TESTS_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <cmocka.h>
#include <pebble.h>

#define DEADLINE_NS PEBBLE_SECONDS(20)

#if defined(__SANITIZE_THREAD__)
#define WITH_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define WITH_THREAD_SANITIZER 1
#endif
#endif
#ifndef WITH_THREAD_SANITIZER
#define WITH_THREAD_SANITIZER 0
#endif
#if defined(__SANITIZE_ADDRESS__)
#define WITH_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ADDRESS_SANITIZER 1
#endif
#endif
#ifndef WITH_ADDRESS_SANITIZER
#define WITH_ADDRESS_SANITIZER 0
#endif

/* ---- Counters: the one kind of event ---- */

/* Lives in memory that all concerned share; starts at 0. */
typedef struct counter {
    _Atomic uint32_t value;
} counter;

/* Zeroed memory shared with every process forked later, until the test's end. */
void *shared_memory(size_t size);

/* As shared_memory(), also for processes that are executed: they map it by its path. */
enum { MEMORY_PATH_SIZE = 64 };
void *shared_memory_with_path(size_t size, char path[MEMORY_PATH_SIZE]);

/* Maps that memory in another process, while the test runs; NULL if it cannot. In tasks too. */
void *shared_memory_at(const char *path, size_t size);

/* Adds, and wakes those that wait. Returns the new value. May be used in tasks. */
uint32_t counter_add(counter *events, uint32_t n);
uint32_t counter_value(counter *events);

/* Waits until the counter has reached a value. False: the deadline came first. In tasks too. */
bool counter_wait(counter *events, uint32_t at_least);

/* As counter_wait() with a failed test for false; not in tasks. */
#define counter_expect(events, at_least) assert_true(counter_wait(events, at_least))

/* For what gives no event: looks once a millisecond. False: the deadline came first. */
bool wait_until(bool (*holds)(void *context), void *context);

/* For qsort() of int64_t, the smallest first. */
int compare_ns(const void *a, const void *b);

/* ---- Errors ---- */

/* The call gave the error, and pebble_error_message() says so. */
#define expect_error(call, expected, said)                                               \
    expect_error_at(call, expected, said, __FILE__, __LINE__)
void expect_error_at(pebble_error error, pebble_error expected, const char *said,
                     const char *file, int line);

/* The call gave PEBBLE_OK; else the message is shown. */
#define expect_ok(call) expect_ok_at(call, #call, __FILE__, __LINE__)
void expect_ok_at(pebble_error error, const char *call, const char *file, int line);

/* ---- Processes ---- */

/* True while there is such a process; a zombie is none. */
bool process_lives(pid_t pid);

/* The process has ended, or does so in time. */
#define expect_gone(pid) assert_true(process_wait_end(pid))
bool process_wait_end(pid_t pid);

/* SIGKILL; a pid that is none fails the test and kills nobody. */
#define process_kill(pid) process_kill_at(pid, __FILE__, __LINE__)
void process_kill_at(pid_t pid, const char *file, int line);

/* The parent of a process, 0 if there is none. */
pid_t process_parent(pid_t pid);

/* One character for the state of a process, as in /proc; 0 if there is none. */
char process_state(pid_t pid);

/* The children of a process, zombies too: fills pids up to capacity, returns how many there are. */
size_t process_children(pid_t pid, pid_t *pids, size_t capacity);

/* The name (comm) of a process or thread. */
void process_name(pid_t pid, char name[32]);

/* The memory of its own that a process has in use, in bytes; 0 if there is no such process. */
size_t process_memory(pid_t pid);

/* How many descriptors, and threads, a process has. */
size_t process_descriptors(pid_t pid);
size_t process_threads(pid_t pid);

/* How many descriptors this process has open. */
size_t open_descriptors(void);

/* How many channels of workers this process has mapped. */
size_t mapped_channels(void);

/* Forks a program: runs function in it, where a failed assert ends it, then ends it with the code
 * that function returns. The child is waited for by program_wait() or program_kill(). */
pid_t program_start(int (*function)(void *context), void *context);

/* Waits for the end; returns the exit code, or minus the signal's number. */
int program_wait(pid_t pid);

/* SIGKILL, and waits for the end. */
void program_kill(pid_t pid);

/* ---- Tasks ---- */

int nothing(pebble_task *task, const void *input, size_t input_size);

/* Of an int. */
int square(pebble_task *task, const void *input, size_t input_size);

/* The result is the worker's number, an int. */
int tell_pid(pebble_task *task, const void *input, size_t input_size);

/* ---- Pools ---- */

pebble_pool *new_process_pool(const pebble_pool_options *options);
pebble_pool *new_thread_pool(const pebble_pool_options *options);

/* Schedules, which must succeed. */
pebble_future *schedule(pebble_pool *pool, pebble_function function, const void *input,
                        size_t input_size, int64_t timeout_ns);

/* Waits for the future's end and unreferences it; it must have ended so. */
#define expect_end(future, expected) expect_end_at(future, expected, __FILE__, __LINE__)
void expect_end_at(pebble_future *future, pebble_error expected, const char *file,
                   int line);

/* True if it says that the process crashed: SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGSYS. */
bool is_crash(const pebble_failure *failure);

/* The same for a result that is an int. */
int take_int(pebble_future *future);

/* Closes or stops, joins and frees. */
void close_join_free(pebble_pool *pool);
void stop_join_free(pebble_pool *pool);

/* The number that an environment variable has, for tests that can also be long; if unset, the other. */
unsigned environment_number(const char *name, unsigned otherwise);

/* Loads tests/late_module.c, which stays loaded: two functions, with and without a name. */
typedef struct late_module {
    pebble_function twice, thrice;
} late_module;
late_module load_late_module(void);

/* ---- Setup and teardown of each test ---- */

/* Notes what the process has open. */
int support_setup(void **state);

/* Fails if the test has left a child (also a zombie), a process that is nobody's child any more, a worker's
 * channel, a thread or a descriptor, each after a while; gives shared memory back. */
int support_teardown(void **state);

/* cmocka's entry for a test with both. */
#define supported_test(test)                                                             \
    cmocka_unit_test_setup_teardown(test, support_setup, support_teardown)

#endif
