#include "support.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return PEBBLE_SECONDS(now.tv_sec) + now.tv_nsec;
}

/* ---- Orphans ---- */

#define WITH_ORPHANAGE "PEBBLE_TEST_WITH_ORPHANAGE"

/* Reaps what outlives its parent anywhere below the test program. */
static pid_t orphanage, its_own_child;

static _Noreturn void run_orphanage(pid_t test) {
    int status;
    pid_t ended;
    do
        ended = wait(&status);
    while (ended != test);
    if (WIFSIGNALED(status)) {
        signal(WTERMSIG(status), SIG_DFL);
        raise(WTERMSIG(status));
    }
    _exit(WEXITSTATUS(status));
}

/* The program goes on in a child. Not so the workers that execute it. */
__attribute__((constructor)) static void fork_from_orphanage(void) {
    if (getenv(WITH_ORPHANAGE) != NULL)
        return;
    setenv(WITH_ORPHANAGE, "yes", 1);
    orphanage = getpid();
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    pid_t pid = fork();
    if (pid > 0)
        run_orphanage(pid);
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    if (pid < 0 || getppid() != orphanage)
        abort();
    its_own_child = getpid();
}

/* ---- Shared memory and counters ---- */

enum { MAPPINGS_MAX = 16 };

static struct {
    void *memory;
    size_t size;
    int fd; /* -1: none */
} mappings[MAPPINGS_MAX];
static size_t mapping_count;

static void *map_shared(int fd, size_t size) {
    int flags = fd < 0 ? MAP_SHARED | MAP_ANONYMOUS : MAP_SHARED;
    return mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);
}

static void *new_shared_memory(int fd, size_t size) {
    assert_true(mapping_count < MAPPINGS_MAX);
    void *memory = map_shared(fd, size);
    assert_ptr_not_equal(memory, MAP_FAILED);
    mappings[mapping_count].memory = memory;
    mappings[mapping_count].fd = fd;
    mappings[mapping_count++].size = size;
    return memory;
}

void *shared_memory(size_t size) {
    return new_shared_memory(-1, size);
}

void *shared_memory_with_path(size_t size, char path[MEMORY_PATH_SIZE]) {
    int fd = memfd_create("test", MFD_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    snprintf(path, MEMORY_PATH_SIZE, "/proc/%d/fd/%d", (int)getpid(), fd);
    return new_shared_memory(fd, size);
}

void *shared_memory_at(const char *path, size_t size) {
    int fd = open(path, O_RDWR | O_CLOEXEC);
    void *memory = fd >= 0 ? map_shared(fd, size) : MAP_FAILED;
    if (fd >= 0)
        close(fd);
    return memory != MAP_FAILED ? memory : NULL;
}

uint32_t counter_add(counter *events, uint32_t n) {
    uint32_t value = atomic_fetch_add(&events->value, n) + n;
    syscall(SYS_futex, &events->value, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    return value;
}

uint32_t counter_value(counter *events) {
    return atomic_load(&events->value);
}

bool counter_wait(counter *events, uint32_t at_least) {
    int64_t deadline_ns = now_ns() + DEADLINE_NS;
    uint32_t value;
    while ((value = atomic_load(&events->value)) < at_least) {
        int64_t left_ns = deadline_ns - now_ns();
        if (left_ns <= 0)
            return false;
        struct timespec left = {.tv_sec = (time_t)(left_ns / PEBBLE_SECONDS(1)),
                                .tv_nsec = (long)(left_ns % PEBBLE_SECONDS(1))};
        syscall(SYS_futex, &events->value, FUTEX_WAIT, value, &left, NULL, 0);
    }
    return true;
}

bool wait_until(bool (*holds)(void *context), void *context) {
    int64_t deadline_ns = now_ns() + DEADLINE_NS;
    while (!holds(context)) {
        if (now_ns() > deadline_ns)
            return false;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    return true;
}

int compare_ns(const void *a, const void *b) {
    int64_t first = *(const int64_t *)a, second = *(const int64_t *)b;
    return (first > second) - (first < second);
}

/* ---- Errors ---- */

void expect_error_at(pebble_error error, pebble_error expected, const char *said,
                     const char *file, int line) {
    const char *message = pebble_error_message();
    if (error == expected && (said == NULL || strstr(message, said) != NULL))
        return;
    print_error("%s:%d: %s (\"%s\"), not %s with \"%s\"\n", file, line,
                pebble_error_name(error), message, pebble_error_name(expected),
                said != NULL ? said : "");
    _fail(file, line);
}

void expect_ok_at(pebble_error error, const char *call, const char *file, int line) {
    if (error == PEBBLE_OK)
        return;
    print_error("%s:%d: %s gives %s (\"%s\")\n", file, line, call,
                pebble_error_name(error), pebble_error_message());
    _fail(file, line);
}

/* ---- Processes ---- */

/* The fields of /proc/PID/stat behind the name: state and parent. */
static bool read_stat(pid_t pid, char *process_state, int *parent) {
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t size = read(fd, text, sizeof text - 1);
    close(fd);
    text[size > 0 ? size : 0] = '\0';
    const char *name_end = strrchr(text, ')');
    return name_end != NULL && sscanf(name_end + 1, " %c %d", process_state, parent) == 2;
}

char process_state(pid_t pid) {
    char found;
    int parent;
    return read_stat(pid, &found, &parent) ? found : 0;
}

bool process_lives(pid_t pid) {
    char found = process_state(pid);
    return found != 0 && found != 'Z' && found != 'X';
}

pid_t process_parent(pid_t pid) {
    char found;
    int parent;
    return read_stat(pid, &found, &parent) ? parent : 0;
}

static bool has_ended(void *pid) {
    return !process_lives(*(pid_t *)pid);
}

bool process_wait_end(pid_t pid) {
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd >= 0) {
        struct pollfd event = {.fd = fd, .events = POLLIN};
        while (poll(&event, 1, (int)(DEADLINE_NS / 1000000)) < 0 && errno == EINTR)
            ;
        close(fd);
    }
    return wait_until(has_ended, &pid);
}

void process_kill_at(pid_t pid, const char *file, int line) {
    if (pid > 1 && kill(pid, SIGKILL) == 0)
        return;
    print_error("%s:%d: no process %d to kill\n", file, line, (int)pid);
    _fail(file, line);
}

size_t process_children(pid_t pid, pid_t *pids, size_t capacity) {
    char path[300];
    size_t count = 0;
    int child;
    struct dirent *thread;
    snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    DIR *threads = opendir(path);
    while (threads != NULL && (thread = readdir(threads)) != NULL) {
        snprintf(path, sizeof path, "/proc/%d/task/%s/children", (int)pid, thread->d_name);
        FILE *file = fopen(path, "re");
        for (; file != NULL && fscanf(file, "%d", &child) == 1; count++) {
            if (count < capacity)
                pids[count] = child;
        }
        if (file != NULL)
            fclose(file);
    }
    if (threads != NULL)
        closedir(threads);
    return count;
}

void process_name(pid_t pid, char name[32]) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/comm", (int)pid);
    FILE *file = fopen(path, "re");
    if (file == NULL || fscanf(file, "%31[^\n]", name) != 1)
        name[0] = '\0';
    if (file != NULL)
        fclose(file);
}

size_t process_memory(pid_t pid) {
    char path[64];
    unsigned long pages = 0, shared = 0;
    snprintf(path, sizeof path, "/proc/%d/statm", (int)pid);
    FILE *file = fopen(path, "re");
    if (file == NULL || fscanf(file, "%*u %lu %lu", &pages, &shared) != 2)
        pages = shared = 0;
    if (file != NULL)
        fclose(file);
    return (pages - shared) * (size_t)sysconf(_SC_PAGESIZE);
}

/* Of a folder in /proc, where the entries are numbers. */
static size_t count_entries(pid_t pid, const char *folder) {
    char path[64];
    struct dirent *entry;
    size_t count = 0;
    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, folder);
    DIR *directory = opendir(path);
    while (directory != NULL && (entry = readdir(directory)) != NULL)
        count += entry->d_name[0] != '.';
    if (directory != NULL)
        closedir(directory);
    return count;
}

size_t process_descriptors(pid_t pid) {
    return count_entries(pid, "fd");
}

size_t process_threads(pid_t pid) {
    return count_entries(pid, "task");
}

size_t open_descriptors(void) {
    return process_descriptors(getpid());
}

size_t mapped_channels(void) {
    char line[512];
    size_t count = 0;
    FILE *maps = fopen("/proc/self/maps", "re");
    while (maps != NULL && fgets(line, sizeof line, maps) != NULL)
        count += strstr(line, "memfd:pebble-") != NULL;
    if (maps != NULL)
        fclose(maps);
    return count;
}

/* All threads but this one. */
static bool others_sleep(void) {
    struct dirent *entry;
    bool sleep = true;
    DIR *directory = opendir("/proc/self/task");
    while (directory != NULL && sleep && (entry = readdir(directory)) != NULL) {
        pid_t thread = (pid_t)atoi(entry->d_name);
        sleep = thread == 0 || thread == gettid() || process_state(thread) == 'S';
    }
    if (directory != NULL)
        closedir(directory);
    return sleep;
}

pid_t program_start(int (*function)(void *context), void *context) {
    static const int caught_by_cmocka[] = {SIGFPE, SIGILL, SIGSEGV, SIGBUS, SIGSYS};
    pid_t parent = getpid();
    /* Its allocator may be locked by a thread that the child does not have. Not for long: there may be
     * threads that never sleep. */
    for (int i = 0; WITH_ADDRESS_SANITIZER && i < 50 && !others_sleep(); i++)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    fflush(stdout);
    fflush(stderr);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid != 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    if (getppid() != parent)
        _exit(EXIT_FAILURE);
    setenv("CMOCKA_TEST_ABORT", "1", 1);
    for (size_t i = 0; i < sizeof caught_by_cmocka / sizeof caught_by_cmocka[0]; i++)
        signal(caught_by_cmocka[i], SIG_DFL);
    int code = function(context);
    fflush(stdout);
    fflush(stderr);
    _exit(code);
}

int program_wait(pid_t pid) {
    int status;
    assert_true(process_wait_end(pid));
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

void program_kill(pid_t pid) {
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(program_wait(pid), -SIGKILL);
}

/* ---- Tasks ---- */

int nothing(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    return 0;
}

int square(pebble_task *task, const void *input, size_t input_size) {
    int n = *(const int *)input, result = n * n;
    (void)input_size;
    return (int)pebble_task_write(task, &result, sizeof result);
}

int tell_pid(pebble_task *task, const void *input, size_t input_size) {
    int pid = getpid();
    (void)input, (void)input_size;
    return (int)pebble_task_write(task, &pid, sizeof pid);
}

/* ---- Pools ---- */

pebble_pool *new_process_pool(const pebble_pool_options *options) {
    pebble_pool *pool = NULL;
    expect_ok(pebble_process_pool_new(options, &pool));
    assert_non_null(pool);
    return pool;
}

pebble_pool *new_thread_pool(const pebble_pool_options *options) {
    pebble_pool *pool = NULL;
    expect_ok(pebble_thread_pool_new(options, &pool));
    assert_non_null(pool);
    return pool;
}

pebble_future *schedule(pebble_pool *pool, pebble_function function, const void *input,
                        size_t input_size, int64_t timeout_ns) {
    pebble_future *future = NULL;
    expect_ok(pebble_schedule(pool, function, input, input_size, timeout_ns, &future));
    assert_non_null(future);
    return future;
}

void expect_end_at(pebble_future *future, pebble_error expected, const char *file,
                   int line) {
    pebble_error error = pebble_future_result(future, DEADLINE_NS, NULL, NULL);
    if (error == expected) {
        pebble_future_unref(future);
        return;
    }
    const pebble_failure *failure = pebble_future_failure(future);
    print_error("%s:%d: the future ended with %s (\"%s\"), not %s\n", file, line,
                pebble_error_name(error), failure != NULL ? failure->message : "",
                pebble_error_name(expected));
    _fail(file, line);
}

bool is_crash(const pebble_failure *failure) {
    static const int crashes[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGSYS};
    for (size_t i = 0; failure != NULL && i < sizeof crashes / sizeof crashes[0]; i++) {
        if (failure->signal == crashes[i])
            return true;
    }
    return false;
}

int take_int(pebble_future *future) {
    int result = 0;
    expect_ok(pebble_future_copy_result(future, DEADLINE_NS, &result, sizeof result));
    pebble_future_unref(future);
    return result;
}

static void join_free(pebble_pool *pool) {
    expect_ok(pebble_pool_join(pool, DEADLINE_NS));
    pebble_pool_free(pool);
}

void close_join_free(pebble_pool *pool) {
    expect_ok(pebble_pool_close(pool));
    join_free(pool);
}

void stop_join_free(pebble_pool *pool) {
    expect_ok(pebble_pool_stop(pool));
    join_free(pool);
}

unsigned environment_number(const char *name, unsigned otherwise) {
    const char *text = getenv(name);
    return text != NULL ? (unsigned)strtoul(text, NULL, 10) : otherwise;
}

late_module load_late_module(void) {
    char path[PATH_MAX + 32]; /* beside the test program */
    ssize_t size = readlink("/proc/self/exe", path, PATH_MAX);
    assert_true(size > 0);
    path[size] = '\0';
    strcpy(strrchr(path, '/'), "/late_module.so");
    void *module = dlopen(path, RTLD_NOW);
    if (module == NULL)
        fail_msg("%s", dlerror());
    pebble_function (*thrice)(void) =
        (pebble_function(*)(void))(uintptr_t)dlsym(module, "module_static");
    late_module loaded = {.twice =
                              (pebble_function)(uintptr_t)dlsym(module, "module_double")};
    assert_non_null(loaded.twice);
    assert_non_null(thrice);
    loaded.thrice = thrice();
    return loaded;
}

/* ---- Setup and teardown ---- */

static size_t descriptors_before, threads_before;

int support_setup(void **state) {
    pebble_pool *pool;
    (void)state;
    if (pebble_process_pool_new(NULL, &pool) != PEBBLE_OK)
        return -1;
    pebble_pool_free(pool); /* what stays with the program is there now */
    descriptors_before = open_descriptors();
    threads_before = process_threads(getpid());
    return 0;
}

static bool no_children(void *unused) {
    (void)unused;
    return process_children(getpid(), NULL, 0) == 0;
}

static bool no_orphans(void *unused) {
    pid_t child = its_own_child;
    (void)unused;
    return orphanage == 0 || /* done without by hand */
           (process_children(orphanage, &child, 1) == 1 && child == its_own_child);
}

static bool no_new_descriptors(void *unused) {
    (void)unused;
    return open_descriptors() <= descriptors_before;
}

static bool no_channels(void *unused) {
    (void)unused;
    return mapped_channels() == 0;
}

static bool no_new_threads(void *unused) {
    (void)unused;
    return process_threads(getpid()) <= threads_before;
}

/* Kills them too, so that the next test starts afresh. */
static void show_and_kill_children(pid_t parent) {
    pid_t pids[16];
    char name[32];
    size_t count = process_children(parent, pids, 16);
    for (size_t i = 0; i < count && i < 16; i++) {
        if (pids[i] == its_own_child)
            continue;
        process_name(pids[i], name);
        print_error("%s left: %d %s (%c)\n", parent == orphanage ? "orphan" : "child",
                    (int)pids[i], name, process_state(pids[i]));
        kill(pids[i], SIGKILL);
    }
}

static void show_descriptors(void) {
    char path[300], target[256];
    struct dirent *entry;
    DIR *directory = opendir("/proc/self/fd");
    while (directory != NULL && (entry = readdir(directory)) != NULL) {
        snprintf(path, sizeof path, "/proc/self/fd/%s", entry->d_name);
        ssize_t size = readlink(path, target, sizeof target - 1);
        if (size > 0)
            print_error("descriptor %s: %.*s\n", entry->d_name, (int)size, target);
    }
    if (directory != NULL)
        closedir(directory);
}

static void show_threads(void) {
    char name[32];
    struct dirent *entry;
    DIR *directory = opendir("/proc/self/task");
    while (directory != NULL && (entry = readdir(directory)) != NULL) {
        if (entry->d_name[0] != '.') {
            process_name((pid_t)atoi(entry->d_name), name);
            print_error("thread %s: %s\n", entry->d_name, name);
        }
    }
    if (directory != NULL)
        closedir(directory);
}

static void give_memory_back(void) {
    while (mapping_count > 0) {
        mapping_count--;
        munmap(mappings[mapping_count].memory, mappings[mapping_count].size);
        if (mappings[mapping_count].fd >= 0)
            close(mappings[mapping_count].fd);
    }
}

int support_teardown(void **state) {
    int result = 0;
    (void)state;
    if (!wait_until(no_children, NULL)) {
        show_and_kill_children(getpid());
        result = -1;
    }
    if (!wait_until(no_orphans, NULL)) {
        show_and_kill_children(orphanage);
        result = -1;
    }
    if (!wait_until(no_channels, NULL)) {
        print_error("%zu channels mapped\n", mapped_channels());
        result = -1;
    }
    if (!wait_until(no_new_threads, NULL)) {
        print_error("%zu threads more\n", process_threads(getpid()) - threads_before);
        show_threads();
        result = -1;
    }
    give_memory_back(); /* with its descriptors */
    if (!wait_until(no_new_descriptors, NULL)) {
        print_error("%zu descriptors more\n", open_descriptors() - descriptors_before);
        show_descriptors();
        result = -1;
    }
    return result;
}
