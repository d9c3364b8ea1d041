/* How many workers a pool has by default: the processors that the process may use, by its affinity
 * and by the quota of its control group and of that one's ancestors.
 *
 * The groups are real ones, made here where this is root and the system lets it; a forked program
 * enters them and asks. Which version has the cpu controller is the system's choice: the other
 * one's test is skipped. So that version 2 is read everywhere, its files are also laid out by hand,
 * in a mount namespace of a program's own.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "support.h"

enum { CANNOT = -1 }; /* instead of a number of workers: it cannot be tried here */

/* ---- Asking ---- */

static int default_of(pebble_error (*make)(const pebble_pool_options *, pebble_pool **)) {
    pebble_pool_info info = PEBBLE_POOL_INFO_INIT;
    pebble_pool *pool;
    if (make(NULL, &pool) != PEBBLE_OK || pebble_pool_get_info(pool, &info) != PEBBLE_OK)
        return 0;
    pebble_pool_free(pool);
    return info.max_workers;
}

/* Of both kinds; 0 if they differ. Not with asserts: for forked programs too. */
static int default_workers(void) {
    int processes = default_of(pebble_process_pool_new);
    int threads = default_of(pebble_thread_pool_new);
    return processes == threads ? processes : 0;
}

typedef struct question {
    int (*ask)(const void *context); /* default_workers(), or CANNOT */
    const void *context;
    int *answer; /* shared: more than an exit code can be */
} question;

static int ask(void *context) {
    const question *asked = context;
    *asked->answer = asked->ask(asked->context);
    return 0;
}

static int *answer; /* of each test */

static int setup(void **state) {
    int result = support_setup(state);
    answer = shared_memory(sizeof *answer);
    return result;
}

/* What a forked program answers. */
static int ask_program(int (*function)(const void *context), const void *context) {
    question asked = {function, context, answer};
    *answer = CANNOT;
    assert_int_equal(program_wait(program_start(ask, &asked)), 0);
    return *answer;
}

static int processors_by_affinity(void) {
    cpu_set_t set;
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    return CPU_COUNT(&set);
}

static int smaller(int a, int b) {
    return a < b ? a : b;
}

/* ---- Control groups ---- */

static bool write_file(const char *directory, const char *name, const char *text) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    bool written = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    close(fd);
    return written;
}

/* Two groups, one in the other; and what is to be written into each. */
typedef struct groups {
    char outer[PATH_MAX - 64], inner[PATH_MAX];
} groups;

static bool make_groups(groups *made, const char *hierarchy) {
    snprintf(made->outer, sizeof made->outer, "%s/pebble-test-%d", hierarchy,
             (int)getpid());
    snprintf(made->inner, sizeof made->inner, "%s/inner", made->outer);
    if (mkdir(made->outer, 0755) != 0)
        return false;
    if (mkdir(made->inner, 0755) == 0)
        return true;
    rmdir(made->outer);
    return false;
}

static bool is_removed(void *path) {
    return rmdir(path) == 0 || errno == ENOENT; /* busy until its last process is reaped */
}

static void remove_groups(groups *made) {
    assert_true(wait_until(is_removed, made->inner));
    assert_true(wait_until(is_removed, made->outer));
}

static int ask_in_group(const void *group) {
    return write_file(group, "cgroup.procs", "0") ? default_workers() : CANNOT;
}

static int workers_in(const char *group) {
    return ask_program(ask_in_group, group);
}

/* How a quota is set, "max" for none; false if it cannot be. */
typedef bool (*quota_setter)(const char *group, const char *quota);

static bool set_v1(const char *group, const char *quota) {
    return write_file(group, "cpu.cfs_quota_us", strcmp(quota, "max") == 0 ? "-1" : quota);
}

static bool set_v2(const char *group, const char *quota) {
    char text[64];
    snprintf(text, sizeof text, "%s 100000", quota);
    return write_file(group, "cpu.max", text);
}

/* Quotas of 100,000 µs a period. With the inner one no greater, as version 1 demands. */
static const struct quota_case {
    const char *outer, *inner;
    int workers; /* INT_MAX: no limit */
} cases[] = {
    {"max", "max", INT_MAX}, {"max", "100000", 1},   {"max", "20000", 1},
    {"100000", "max", 1},    {"100000", "40000", 1}, {"max", "100001", 2},
    {"max", "150000", 2},    {"200000", "max", 2},   {"300000", "200000", 2},
    {"max", "250000", 3},    {"400000", "max", 4},   {"100000000", "max", 1000},
};

/* False if the hierarchy cannot be used for this. */
static bool check_hierarchy(groups *made, quota_setter set) {
    int affinity = processors_by_affinity(), without = workers_in(made->inner);
    bool usable = without != CANNOT;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0] && usable; i++) {
        usable = set(made->inner, "max") && set(made->outer, "max") &&
                 set(made->outer, cases[i].outer) && set(made->inner, cases[i].inner);
        int workers = usable ? workers_in(made->inner) : 0;
        /* The groups above these may have quotas of their own: without is their limit. */
        int expected = smaller(smaller(cases[i].workers, affinity), without);
        if (usable && workers != expected) {
            print_error("outer %s, inner %s: %d workers, not %d\n", cases[i].outer,
                        cases[i].inner, workers, expected);
            remove_groups(made);
            fail();
        }
    }
    return usable;
}

static void check_real(const char *hierarchy, quota_setter set) {
    groups made;
    if (!make_groups(&made, hierarchy))
        skip();
    /* Version 2 gives the controller to a group's children only if asked. */
    if (set == set_v2)
        write_file(made.outer, "cgroup.subtree_control", "+cpu");
    bool usable = check_hierarchy(&made, set);
    remove_groups(&made);
    if (!usable)
        skip();
}

static void test_quota_v1(void **state) {
    (void)state;
    check_real("/sys/fs/cgroup/cpu", set_v1);
}

static void test_quota_v2(void **state) {
    (void)state;
    check_real("/sys/fs/cgroup", set_v2);
}

/* ---- The files of version 2, by hand ---- */

/* Where this process is in the hierarchy of version 2: "/" or "/group/...". */
static bool own_group(char *group, size_t size) {
    char line[PATH_MAX + 64];
    bool found = false;
    FILE *file = fopen("/proc/self/cgroup", "re");
    while (file != NULL && !found && fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        found = strncmp(line, "0::/", 4) == 0;
    }
    if (file != NULL)
        fclose(file);
    return found && snprintf(group, size, "%s", line + 3) < (int)size;
}

static bool make_directories(char *path) {
    for (char *slash = strchr(path + 1, '/'); slash != NULL;
         slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(path, 0755);
        *slash = '/';
    }
    return mkdir(path, 0755) == 0 || errno == EEXIST;
}

static bool lay_out(const char *directory, const char *text) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/cpu.max", directory);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return false;
    close(fd);
    return write_file(directory, "cpu.max", text);
}

typedef struct layout {
    const char *root,
        *own; /* cpu.max of the root and of the process's group; NULL: none */
    const char *hierarchy; /* where to make a group below the root, or NULL */
} layout;

/* In a program of its own, which enters a mount namespace of its own. */
static int ask_in_layout(const void *context) {
    const layout *told = context;
    char group[PATH_MAX - 64], directory[PATH_MAX];
    if (told->hierarchy != NULL && !write_file(told->hierarchy, "cgroup.procs", "0"))
        return CANNOT;
    if (!own_group(group, sizeof group) || unshare(CLONE_NEWNS) != 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("none", "/sys/fs/cgroup", "tmpfs", 0, NULL) != 0)
        return CANNOT;
    snprintf(directory, sizeof directory, "/sys/fs/cgroup%s", group);
    if (!make_directories(directory) ||
        (told->own != NULL && !lay_out(directory, told->own)) ||
        (told->root != NULL && !lay_out("/sys/fs/cgroup", told->root)))
        return CANNOT;
    return default_workers();
}

static void expect_workers(int workers, const char *root, const char *own,
                           const char *hierarchy) {
    const layout told = {root, own, hierarchy};
    int got = ask_program(ask_in_layout, &told);
    if (got == CANNOT)
        skip();
    assert_int_equal(got, smaller(workers, processors_by_affinity()));
}

static void test_files_of_v2(void **state) {
    (void)state;
    expect_workers(INT_MAX, NULL, NULL, NULL);
    expect_workers(INT_MAX, NULL, "max 100000\n", NULL);
    expect_workers(1, NULL, "100000 100000\n", NULL);
    expect_workers(1, NULL, "1000 100000\n", NULL);
    expect_workers(2, NULL, "100001 100000\n", NULL);
    expect_workers(2, NULL, "20000 10000\n", NULL);
    expect_workers(1, NULL, "5000 10000\n", NULL);
    /* What no kernel writes limits nothing. */
    expect_workers(INT_MAX, NULL, "", NULL);
    expect_workers(INT_MAX, NULL, "nonsense\n", NULL);
    expect_workers(INT_MAX, NULL, "0 100000\n", NULL);
    expect_workers(INT_MAX, NULL, "-1 100000\n", NULL);
    expect_workers(INT_MAX, NULL, "100000 0\n", NULL);
    expect_workers(INT_MAX, NULL, "9223372036854775806 1\n", NULL);
}

/* The same, of a group's ancestors: in a real group of version 2, without the controller. */
static void check_ancestors(groups *made) {
    static const struct {
        const char *root, *own;
        int workers;
    } expected[] = {{"100000 100000\n", NULL, 1},
                    {"100000 100000\n", "max 100000\n", 1},
                    {"max 100000\n", "100000 100000\n", 1},
                    {"100000 100000\n", "400000 100000\n", 1},
                    {"max 100000\n", "max 100000\n", INT_MAX}};
    int got[5];
    for (int i = 0; i < 5; i++) {
        const layout told = {expected[i].root, expected[i].own, made->inner};
        got[i] = ask_program(ask_in_layout, &told);
    }
    remove_groups(made);
    for (int i = 0; i < 5; i++) {
        if (got[i] == CANNOT)
            skip();
        assert_int_equal(got[i], smaller(expected[i].workers, processors_by_affinity()));
    }
}

static void test_ancestors_of_v2(void **state) {
    groups made;
    (void)state;
    if (make_groups(&made, access("/sys/fs/cgroup/unified/cgroup.procs", F_OK) == 0
                               ? "/sys/fs/cgroup/unified"
                               : "/sys/fs/cgroup"))
        check_ancestors(&made);
    else
        skip();
}

/* ---- Affinity ---- */

static int ask_with_processors(const void *count) {
    cpu_set_t all, some;
    if (sched_getaffinity(0, sizeof all, &all) != 0)
        return CANNOT;
    CPU_ZERO(&some);
    for (size_t i = 0; i < CPU_SETSIZE && CPU_COUNT(&some) < *(const int *)count; i++) {
        if (CPU_ISSET(i, &all))
            CPU_SET(i, &some);
    }
    return sched_setaffinity(0, sizeof some, &some) == 0 ? default_workers() : CANNOT;
}

static void test_affinity(void **state) {
    int without = default_workers(), affinity = processors_by_affinity();
    (void)state;
    assert_in_range(without, 1, affinity);
    for (int count = 1; count <= smaller(affinity, 4); count++)
        assert_int_equal(ask_program(ask_with_processors, &count),
                         smaller(count, without));
}

/* What is asked for counts, whatever there is. */
static void test_options_count_more(void **state) {
    pebble_pool_info info = PEBBLE_POOL_INFO_INIT;
    (void)state;
    pebble_pool *pool = new_process_pool(PEBBLE_POOL_OPTIONS(.max_workers = 77));
    expect_ok(pebble_pool_get_info(pool, &info));
    assert_int_equal(info.max_workers, 77);
    pebble_pool_free(pool);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, support_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(affinity),    TEST(quota_v1),        TEST(quota_v2),
        TEST(files_of_v2), TEST(ancestors_of_v2), TEST(options_count_more),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests_name("processors", tests, NULL, NULL);
}
