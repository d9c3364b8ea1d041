/* Row 23: what the processes of a pool can reach of one another and of the program; that nothing of theirs has
 * a name in the file system; and that a user without rights can do everything. */
#include "platform/platform.h"
#include "support.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

enum { NOBODY = 65534, WORKERS = 2, TEXT_SIZE = 8192, LARGE = 1000 * 1000 };

static const pebble_start_method methods[] = {PEBBLE_START_FORK, PEBBLE_START_FORKSERVER,
                                              PEBBLE_START_SPAWN};

static counter *met;
static char met_path[MEMORY_PATH_SIZE]; /* for workers that are executed */

static int setup(void **state) {
    met = shared_memory_with_path(sizeof *met, met_path);
    return support_setup(state);
}

/* ---- What a process holds ---- */

static void append(char *text, const char *line) {
    if (strlen(text) + strlen(line) < TEXT_SIZE)
        strcat(text, line);
}

/* Of an eventfd its number, which tells it from others; else 0. */
static int event_number(pid_t pid, const char *fd) {
    char path[300], line[128];
    int number = 0;
    snprintf(path, sizeof path, "/proc/%d/fdinfo/%s", (int)pid, fd);
    FILE *info = fopen(path, "re");
    while (info != NULL && fgets(line, sizeof line, info) != NULL)
        sscanf(line, "eventfd-id: %d", &number);
    if (info != NULL)
        fclose(info);
    return number;
}

/* The targets of a process's descriptors above the standard streams, a line each, "bell NUMBER" for an eventfd. */
static void describe_descriptors(pid_t pid, char *text) {
    char directory_path[64], path[400], target[256], line[300];
    struct dirent *entry;
    snprintf(directory_path, sizeof directory_path, "/proc/%d/fd", (int)pid);
    DIR *directory = opendir(directory_path);
    while (directory != NULL && (entry = readdir(directory)) != NULL) {
        int fd = atoi(entry->d_name);
        snprintf(path, sizeof path, "%s/%s", directory_path, entry->d_name);
        ssize_t length = readlink(path, target, sizeof target - 1);
        if (fd <= 2 || (pid == getpid() && fd == dirfd(directory)) || length <= 0)
            continue;
        target[length] = '\0';
        if (strcmp(target, "anon_inode:[eventfd]") == 0)
            snprintf(line, sizeof line, "bell %d\n", event_number(pid, entry->d_name));
        else
            snprintf(line, sizeof line, "%s\n", target);
        append(text, line);
    }
    if (directory != NULL)
        closedir(directory);
}

/* -1: only root may open what is mapped. */
static int seals_of_mapping(pid_t pid, unsigned long start, unsigned long end) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/map_files/%lx-%lx", (int)pid, start, end);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int seals = fd >= 0 ? fcntl(fd, F_GET_SEALS) : -1;
    if (fd >= 0)
        close(fd);
    return seals;
}

/* The channels that it has mapped, "map NAME INODE" and "seals NAME SEALS", a line each. */
static void describe_channels(pid_t pid, char *text) {
    char path[64], line[512], name[256], found[300];
    unsigned long start, end, inode;
    snprintf(path, sizeof path, "/proc/%d/maps", (int)pid);
    FILE *maps = fopen(path, "re");
    while (maps != NULL && fgets(line, sizeof line, maps) != NULL) {
        if (strstr(line, "memfd:pebble-") == NULL ||
            sscanf(line, "%lx-%lx %*s %*s %*s %lu %255s", &start, &end, &inode, name) != 4)
            continue;
        snprintf(found, sizeof found, "map %s %lu\n", name, inode);
        if (strstr(text, found) != NULL)
            continue;
        append(text, found);
        snprintf(found, sizeof found, "seals %s %d\n", name,
                 seals_of_mapping(pid, start, end));
        append(text, found);
    }
    if (maps != NULL)
        fclose(maps);
}

/* ---- Tasks ---- */

/* In each worker at the same time. */
static int describe_worker(pebble_task *task, const void *input, size_t input_size) {
    static char text[TEXT_SIZE];
    counter *at = shared_memory_at(input, sizeof *at);
    (void)input_size;
    text[0] = '\0';
    if (at == NULL)
        return 1;
    counter_add(at, 1);
    if (!counter_wait(at, WORKERS))
        return 2;
    describe_descriptors(getpid(), text);
    describe_channels(getpid(), text);
    return (int)pebble_task_write(task, text, strlen(text) + 1);
}

static int echo(pebble_task *task, const void *input, size_t input_size) {
    return (int)pebble_task_write(task, input, input_size);
}

static int leave(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    _exit(3);
}

static int stay(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    for (;;)
        pause();
    return 0;
}

/* ---- Channels and sockets ---- */

static size_t count_lines(const char *text, const char *with) {
    size_t count = 0;
    for (; (text = strstr(text, with)) != NULL; text++)
        count++;
    return count;
}

/* Not only the beginning of another. */
static bool has_line(const char *text, const char *line) {
    size_t length = strlen(line);
    for (; (text = strstr(text, line)) != NULL; text++) {
        if (text[length] == '\n')
            return true;
    }
    return false;
}

/* What is not the other's. */
static bool is_of_one(const char *line) {
    return strncmp(line, "map ", 4) == 0 || strncmp(line, "bell ", 5) == 0;
}

/* Even who opens its channel anew cannot change its size, nor write where the program does. */
static void check_seals(const char *text) {
    const int fixed_size = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    char up[64], down[64];
    bool may_look = geteuid() == 0;
    snprintf(up, sizeof up, "seals /memfd:pebble-up %d\n", may_look ? fixed_size : -1);
    snprintf(down, sizeof down, "seals /memfd:pebble-down %d\n",
             may_look ? fixed_size | F_SEAL_FUTURE_WRITE : -1);
    assert_non_null(strstr(text, up));
    assert_non_null(strstr(text, down));
}

/* Its own channel and bell, of which the other has nothing, and no way to the zygote or the program. */
static void check_worker(char *text, const char *other, const char *program_had,
                         bool inherits) {
    assert_int_equal(count_lines(text, "map "), 2);
    assert_int_equal(count_lines(text, "map /memfd:pebble-up "), 1);
    assert_int_equal(count_lines(text, "map /memfd:pebble-down "), 1);
    assert_int_equal(count_lines(text, "bell "), 1);
    assert_int_equal(count_lines(text, "bell 0\n"), 0); /* each has a number */
    check_seals(text);
    char *rest = text, *line;
    while ((line = strtok_r(rest, "\n", &rest)) != NULL) {
        if (is_of_one(line))
            assert_false(has_line(other, line));
        else if (strncmp(line, "seals ", 6) != 0 &&
                 !(inherits && has_line(program_had, line)))
            fail_msg("the worker has %s", line);
    }
}

static void check_reach(pebble_start_method method) {
    pebble_future *futures[WORKERS];
    const void *data;
    char *texts[WORKERS], before[TEXT_SIZE] = "";
    describe_descriptors(getpid(), before);
    met->value = 0;
    pebble_pool *pool = new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = WORKERS, .start_method = method));
    for (int i = 0; i < WORKERS; i++)
        futures[i] = schedule(pool, describe_worker, met_path, sizeof met_path, 0);
    for (int i = 0; i < WORKERS; i++) {
        expect_ok(pebble_future_result(futures[i], DEADLINE_NS, &data, NULL));
        texts[i] = strdup(data);
        pebble_future_unref(futures[i]);
    }
    char *first = strdup(texts[0]);
    check_worker(texts[0], texts[1], before, method == PEBBLE_START_FORK);
    check_worker(texts[1], first, before, method == PEBBLE_START_FORK);
    free(first);
    free(texts[0]);
    free(texts[1]);
    close_join_free(pool);
}

/* The program has sockets of its own, which tell those of the engine apart. */
static void test_channels_and_sockets(void **state) {
    int sockets[2];
    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), 0);
    for (int i = 0; i < 3; i++)
        check_reach(methods[i]);
    close(sockets[0]);
    close(sockets[1]);
}

/* ---- What is made while a process forks ---- */

enum { FORKS = 400 };

typedef struct makers {
    pthread_t threads[2];
    _Atomic bool over;
} makers;

/* Each task has a worker, and so a channel, of its own. */
static void *make_channels(void *context) {
    makers *all = context;
    pebble_future *futures[8];
    pebble_pool *pool =
        new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 2, .max_tasks = 1));
    while (!atomic_load(&all->over)) {
        for (int i = 0; i < 8; i++)
            futures[i] = schedule(pool, nothing, NULL, 0, 0);
        for (int i = 0; i < 8; i++)
            expect_end(futures[i], PEBBLE_OK);
    }
    close_join_free(pool);
    return NULL;
}

/* Each pool has a socket to a zygote of its own. */
static void *make_sockets(void *context) {
    makers *all = context;
    while (!atomic_load(&all->over)) {
        pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
        expect_end(schedule(pool, nothing, NULL, 0, 0), PEBBLE_OK);
        stop_join_free(pool);
    }
    return NULL;
}

static void makers_start(makers *all) {
    if (WITH_ADDRESS_SANITIZER)
        skip(); /* its allocator's locks are not held in a fork: the child may find them taken */
    *all = (makers){.over = false};
    assert_int_equal(pthread_create(&all->threads[0], NULL, make_channels, all), 0);
    assert_int_equal(pthread_create(&all->threads[1], NULL, make_sockets, all), 0);
}

static void makers_stop(makers *all) {
    atomic_store(&all->over, true);
    for (int i = 0; i < 2; i++)
        pthread_join(all->threads[i], NULL);
}

static int tell_zygote(pebble_task *task, const void *input, size_t input_size) {
    pid_t zygote = getppid();
    (void)input, (void)input_size;
    return (int)pebble_task_write(task, &zygote, sizeof zygote);
}

typedef struct zygote_look {
    pid_t zygote;
    char held[TEXT_SIZE];
} zygote_look;

static size_t sockets_before; /* that the program had been started with */

/* While it starts a worker it holds that one's channel. */
static bool has_its_socket_alone(void *context) {
    zygote_look *look = context;
    look->held[0] = '\0';
    describe_descriptors(look->zygote, look->held);
    describe_channels(look->zygote, look->held);
    return count_lines(look->held, "memfd:pebble-") == 0 &&
           count_lines(look->held, "bell ") == 0 &&
           count_lines(look->held, "[pidfd]") == 1 && /* the program's */
           count_lines(look->held, "socket:") == sockets_before + 1;
}

static void test_zygotes_forked_amid(void **state) {
    static zygote_look look;
    static makers all; /* also for the threads that run on when the test fails */
    (void)state;
    makers_start(&all);
    for (int i = 0; i < FORKS; i++) {
        pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
        look.zygote = take_int(schedule(pool, tell_zygote, NULL, 0, 0));
        if (!wait_until(has_its_socket_alone, &look))
            fail_msg("zygote %d of %d has\n%s", i + 1, FORKS, look.held);
        stop_join_free(pool);
    }
    makers_stop(&all);
}

/* A channel, a socket pair, a bell and a handle of a process that are just being made in the middle of a fork. */
static struct {
    _Atomic bool armed;
    bool too_much;
    counter begin, begun, end;
} amid;

static void before_fork(void) {
    if (!amid.armed)
        return;
    counter_add(&amid.begin, 1);
    counter_wait(&amid.begun, 1);
}

static void after_fork(void) {
    if (atomic_exchange(&amid.armed, false))
        counter_add(&amid.end, 1);
}

static void *make_amid(void *unused) {
    const size_t size = 1 << 20;
    int fds[2];
    counter_wait(&amid.begin, 1);
    os_making_begins();
    int memory_fd = memfd_create("pebble-up", MFD_CLOEXEC);
    int bell_fd = eventfd(0, EFD_CLOEXEC);
    int process_fd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    bool made = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) == 0 &&
                ftruncate(memory_fd, (off_t)size) == 0;
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
    counter_add(&amid.begun, 1);
    counter_wait(&amid.end, 1);
    const int all[] = {memory_fd, bell_fd, process_fd, fds[0], fds[1]};
    for (int i = 0; amid.too_much && i < OS_FD_NOTES_MAX; i++)
        os_fd_made(memory_fd); /* and no room is left for the others */
    for (int i = 0; i < 5; i++)
        os_fd_made(all[i]);
    os_making_ended();
    munmap(memory, size);
    for (int i = 0; i < 5; i++)
        os_fd_close(all[i]);
    return made ? unused : NULL;
}

static void check_made_amid_a_fork(bool too_much) {
    static zygote_look look;
    static bool handled;
    pthread_t thread;
    void *made;
    if (!handled)
        assert_int_equal(pthread_atfork(before_fork, after_fork, NULL), 0);
    handled = true;
    amid.begin.value = amid.begun.value = amid.end.value = 0;
    amid.too_much = too_much;
    assert_int_equal(pthread_create(&thread, NULL, make_amid, &amid), 0);
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1));
    amid.armed = true;
    look.zygote = take_int(schedule(pool, tell_zygote, NULL, 0, 0));
    assert_int_equal(pthread_join(thread, &made), 0);
    assert_ptr_equal(made, &amid);
    if (!wait_until(has_its_socket_alone, &look))
        fail_msg("the zygote has\n%s", look.held);
    stop_join_free(pool);
}

static void test_made_amid_a_fork(void **state) {
    (void)state;
    check_made_amid_a_fork(false);
}

/* Such a zygote ends; the task goes to another's worker. */
static void test_too_much_made_amid_a_fork(void **state) {
    (void)state;
    check_made_amid_a_fork(true);
}

static int has_no_channel(void *unused) {
    (void)unused;
    return (int)mapped_channels();
}

static void test_children_forked_amid(void **state) {
    static makers all;
    (void)state;
    makers_start(&all);
    for (int i = 0; i < FORKS; i++)
        assert_int_equal(program_wait(program_start(has_no_channel, NULL)), 0);
    makers_stop(&all);
}

/* ---- Names ---- */

/* All that the program has open for its pools is anonymous. */
static void test_nothing_has_a_name(void **state) {
    char before[TEXT_SIZE] = "", with[TEXT_SIZE] = "";
    pebble_pool *pools[3];
    (void)state;
    describe_descriptors(getpid(), before);
    for (int i = 0; i < 3; i++) {
        pools[i] = new_process_pool(
            PEBBLE_POOL_OPTIONS(.max_workers = WORKERS, .start_method = methods[i],
                                .worker_data = "data", .worker_data_size = 4));
        expect_end(schedule(pools[i], echo, "x", 1, 0), PEBBLE_OK);
    }
    describe_descriptors(getpid(), with);
    char *rest = with, *line;
    while ((line = strtok_r(rest, "\n", &rest)) != NULL) {
        if (strstr(before, line) == NULL && strncmp(line, "anon_inode:", 11) != 0 &&
            strncmp(line, "bell ", 5) != 0 && strncmp(line, "socket:", 7) != 0 &&
            strncmp(line, "/memfd:", 7) != 0)
            fail_msg("the program has %s", line);
    }
    for (int i = 0; i < 3; i++)
        close_join_free(pools[i]);
}

/* ---- A user without rights ---- */

static void use_pool(pebble_start_method method) {
    static const char large[LARGE] = {1};
    const void *data;
    size_t size = 0;
    pebble_pool *pool =
        new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 1, .start_method = method));
    pebble_future *future = schedule(pool, echo, large, sizeof large, 0);
    expect_ok(pebble_future_result(future, DEADLINE_NS, &data, &size));
    assert_int_equal(size, sizeof large);
    assert_memory_equal(data, large, sizeof large);
    pid_t pid = pebble_future_pid(future);
    pebble_future_unref(future);
    expect_end(schedule(pool, leave, NULL, 0, 0), PEBBLE_ERR_TASK_EXPIRED);
    expect_end(schedule(pool, stay, NULL, 0, PEBBLE_MILLISECONDS(10)),
               PEBBLE_ERR_TASK_TIMEOUT);
    future = schedule(pool, stay, NULL, 0, 0);
    while (pebble_future_state(future) != PEBBLE_RUNNING)
        usleep(1000);
    pid = pebble_future_pid(future);
    assert_true(pebble_future_cancel(future));
    expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
    assert_false(process_lives(pid));
    future = schedule(pool, stay, NULL, 0, 0);
    while (pebble_future_pid(future) == 0)
        usleep(1000);
    process_kill(process_parent(pebble_future_pid(future)));
    expect_end(future, PEBBLE_ERR_TASK_EXPIRED);
    expect_end(schedule(pool, echo, "x", 1, 0), PEBBLE_OK);
    future = schedule(pool, stay, NULL, 0, 0);
    stop_join_free(pool);
    expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
}

static int run_unprivileged(void *unused) {
    (void)unused;
    if (geteuid() == 0 && (setresgid(NOBODY, NOBODY, NOBODY) != 0 ||
                           setresuid(NOBODY, NOBODY, NOBODY) != 0))
        return 1;
    prctl(PR_SET_DUMPABLE, 1, 0, 0, 0); /* as that user's programs are */
    for (int i = 0; i < 3; i++)
        use_pool(methods[i]);
    return support_teardown(NULL);
}

static void test_unprivileged(void **state) {
    (void)state;
    assert_int_equal(program_wait(program_start(run_unprivileged, NULL)), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, support_teardown)

int main(void) {
    char before[TEXT_SIZE] = "";
    const struct CMUnitTest tests[] = {
        TEST(channels_and_sockets),
        TEST(made_amid_a_fork),
        TEST(too_much_made_amid_a_fork),
        TEST(zygotes_forked_amid),
        TEST(children_forked_amid),
        TEST(nothing_has_a_name),
        TEST(unprivileged),
    };
    pebble_worker_main();
    describe_descriptors(getpid(), before);
    sockets_before = count_lines(before, "socket:");
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests_name("reach", tests, NULL, NULL);
}
