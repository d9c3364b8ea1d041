// The public header in C++11: it compiles without a warning, and its macros work.
#include <pebble.h>

#include <cstdio>

// The types of the arguments and of the result differ, so that a mix-up is seen.
PEBBLE_TASK(double, power, (double, base), (int, exponent)) {
    if (exponent < 0) {
        pebble_task_fail(task, 7, "negative exponent: %d", exponent);
        return 0;
    }
    double result = 1;
    while (exponent-- > 0)
        result *= base;
    return result;
}

PEBBLE_TASK(int, twice, (int, number)) {
    (void)task;
    return 2 * number;
}

PEBBLE_TASK0(int, answer) {
    (void)task;
    return 42;
}

struct point {
    int x, y;
};

PEBBLE_TASK(point, sum_of_eight, (point, a), (int, b), (int, c), (int, d), (int, e),
            (int, f), (int, g), (char, h)) {
    (void)task;
    point result = {a.x + b + c + d, a.y + e + f + g + h};
    return result;
}

static int failures;

static void check(bool good, const char *what) {
    if (!good) {
        std::printf("failed: %s (%s)\n", what, pebble_error_message());
        failures++;
    }
}

static void check_tasks(pebble_pool *pool) {
    pebble_future *future;
    double real = 0;
    int number = 0;
    point sum = {0, 0};

    check(power_schedule(pool, 0, &future, 2.5, 2) == PEBBLE_OK, "schedule power");
    check(power_result(future, PEBBLE_FOREVER, &real) == PEBBLE_OK, "result of power");
    check(real == 6.25, "value of power");
    pebble_future_unref(future);

    check(power_schedule(pool, 0, &future, 2.5, -1) == PEBBLE_OK,
          "schedule a failing power");
    check(power_result(future, PEBBLE_FOREVER, &real) == PEBBLE_ERR_TASK_FAILED,
          "failing power");
    const pebble_failure *failure = pebble_future_failure(future);
    check(failure != NULL && failure->code == 7, "code of the failure");
    pebble_future_unref(future);

    check(twice_schedule(pool, 0, &future, 21) == PEBBLE_OK, "schedule twice");
    check(twice_result(future, PEBBLE_FOREVER, &number) == PEBBLE_OK, "result of twice");
    check(number == 42, "value of twice");
    pebble_future_unref(future);

    check(answer_schedule(pool, 0, &future) == PEBBLE_OK, "schedule answer");
    check(answer_result(future, PEBBLE_FOREVER, &number) == PEBBLE_OK,
          "result of answer");
    check(number == 42, "value of answer");
    pebble_future_unref(future);

    point start = {1, 2};
    check(sum_of_eight_schedule(pool, 0, &future, start, 3, 4, 5, 6, 7, 8, 'a') ==
              PEBBLE_OK,
          "schedule sum_of_eight");
    check(sum_of_eight_result(future, PEBBLE_FOREVER, &sum) == PEBBLE_OK,
          "result of sum_of_eight");
    check(sum.x == 13 && sum.y == 23 + 'a', "value of sum_of_eight");
    pebble_future_unref(future);
}

static int leave_by_return(pthread_mutex_t *mutex) {
    PEBBLE_SYNCHRONIZED (mutex) {
        return 1;
    }
    return 0;
}

static void leave_by_exception(pthread_mutex_t *mutex) {
    PEBBLE_SYNCHRONIZED (mutex) {
        throw 1;
    }
}

static void check_synchronized() {
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    int entered = 0;
    PEBBLE_SYNCHRONIZED (&mutex) {
        entered++;
        check(pthread_mutex_trylock(&mutex) != 0, "the mutex is locked in the block");
    }
    PEBBLE_SYNCHRONIZED (NULL) {
        entered++;
    }
    check(entered == 2, "each block runs once");
    check(leave_by_return(&mutex) == 1, "a block left by return");
    try {
        leave_by_exception(&mutex);
    } catch (int) {
        entered++;
    }
    check(entered == 3, "a block left by an exception");
    check(pthread_mutex_trylock(&mutex) == 0, "the mutex is unlocked behind the blocks");
}

int main() {
    pebble_pool_options options = PEBBLE_POOL_OPTIONS_INIT;
    pebble_task_options task_options = PEBBLE_TASK_OPTIONS_INIT;
    pebble_map_options map_options = PEBBLE_MAP_OPTIONS_INIT;
    pebble_concurrent_options concurrent_options = PEBBLE_CONCURRENT_OPTIONS_INIT;
    pebble_pool_info info = PEBBLE_POOL_INFO_INIT;
    pebble_pool *pool;

    pebble_worker_main();
    check(task_options.struct_size == sizeof task_options, "size of the task's options");
    check(map_options.struct_size == sizeof map_options, "size of the map's options");
    check(concurrent_options.struct_size == sizeof concurrent_options,
          "size of the options");
    check(pebble_version_number() == PEBBLE_VERSION_NUMBER, "version");

    options.max_workers = 2;
    options.name = "header_cxx";
    options.termination_grace_ns = PEBBLE_MILLISECONDS(500);
    check(pebble_process_pool_new(&options, &pool) == PEBBLE_OK, "a pool of processes");
    check_tasks(pool);
    check(pebble_pool_get_info(pool, &info) == PEBBLE_OK && info.max_workers == 2,
          "info");
    check(pebble_pool_close(pool) == PEBBLE_OK, "close");
    check(pebble_pool_join(pool, PEBBLE_FOREVER) == PEBBLE_OK, "join");
    pebble_pool_free(pool);

    check_synchronized();
    return failures == 0 ? 0 : 1;
}
