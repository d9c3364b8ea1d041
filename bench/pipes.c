/* pipes.c - the process pool that a C programmer writes by hand: forked workers, two
 * pipes each, poll(). A task is a function and a number, a result is a number.
 *
 * With a window of one, a worker gets its next task when it has given back a result. With
 * a window of more, tasks and results go in batches, each one write of at most PIPE_BUF
 * bytes; two batches are on their way to each worker, so that it has one while the other
 * is collected. The pipes hold 64 KiB: with so little on its way no write ever blocks. */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct pipe_task {
    long (*function)(long argument);
    long argument;
    long index;
} pipe_task;

typedef struct pipe_result {
    long value;
    long index;
} pipe_result;

enum { batch_max = PIPE_BUF / sizeof(pipe_task) };

typedef struct pipe_worker {
    int tasks, results; /* our ends */
    long in_flight;
} pipe_worker;

typedef struct pipe_pool {
    pipe_worker workers[bench_worker_count];
    long window;   /* how many tasks a worker may have */
    long *results; /* by index; -1 before */
} pipe_pool;

static long no_op(long argument) {
    return argument;
}

static void bytes_write(int descriptor, const void *bytes, size_t size) {
    const char *next = bytes;
    while (size) {
        ssize_t written = write(descriptor, next, size);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            bench_fail("write: %s", strerror(errno));
        next += written;
        size -= (size_t)written;
    }
}

/* Reads whole records, as many as there are. Returns the size; 0 at the end. */
static size_t records_read(int descriptor, void *records, size_t size,
                           size_t record_size) {
    size_t filled = 0;
    do {
        ssize_t got = read(descriptor, (char *)records + filled, size - filled);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            bench_fail("read: %s", strerror(errno));
        if (got == 0)
            return 0;
        filled += (size_t)got;
    } while (filled % record_size);
    return filled;
}

static _Noreturn void worker_serve(int tasks, int results) {
    pipe_task batch[batch_max];
    pipe_result done[batch_max];
    size_t size;
    while ((size = records_read(tasks, batch, sizeof batch, sizeof *batch))) {
        size_t count = size / sizeof *batch;
        for (size_t i = 0; i < count; i++)
            done[i] = (pipe_result){batch[i].function(batch[i].argument), batch[i].index};
        bytes_write(results, done, count * sizeof *done);
    }
    _exit(0);
}

static void worker_start(pipe_worker *worker) {
    int tasks[2], results[2];
    if (pipe2(tasks, O_CLOEXEC) || pipe2(results, O_CLOEXEC))
        bench_fail("pipe: %s", strerror(errno));
    if (bench_fork() == 0) {
        close(tasks[1]);
        close(results[0]);
        worker_serve(tasks[0], results[1]);
    }
    close(tasks[0]);
    close(results[1]);
    *worker = (pipe_worker){tasks[1], results[0], 0};
}

static pipe_pool *pool_open(long window, long count) {
    pipe_pool *pool = bench_allocate(sizeof *pool);
    pool->window = window;
    pool->results = bench_allocate((size_t)count * sizeof *pool->results);
    for (size_t i = 0; i < bench_worker_count; i++)
        worker_start(&pool->workers[i]);
    return pool;
}

static void worker_feed(pipe_pool *pool, pipe_worker *worker, long *next, long count) {
    pipe_task batch[batch_max];
    long batch_size = pool->window > batch_max ? batch_max : pool->window, filled = 0;
    /* A batch goes out when there is room for a whole one. */
    while (*next < count && worker->in_flight + batch_size <= pool->window) {
        for (filled = 0; filled < batch_size && *next < count; filled++, ++*next)
            batch[filled] = (pipe_task){no_op, *next, *next};
        bytes_write(worker->tasks, batch, (size_t)filled * sizeof *batch);
        worker->in_flight += filled;
    }
}

static long worker_collect(pipe_pool *pool, pipe_worker *worker) {
    pipe_result done[batch_max];
    size_t size = records_read(worker->results, done, sizeof done, sizeof *done);
    long count = (long)(size / sizeof *done);
    if (count == 0)
        bench_fail("a worker has gone");
    for (long i = 0; i < count; i++)
        pool->results[done[i].index] = done[i].value;
    worker->in_flight -= count;
    return count;
}

static void burst(void *context, long count) {
    pipe_pool *pool = context;
    struct pollfd polled[bench_worker_count];
    long next = 0, left = count;
    for (long i = 0; i < count; i++)
        pool->results[i] = -1;
    for (size_t i = 0; i < bench_worker_count; i++) {
        polled[i] = (struct pollfd){pool->workers[i].results, POLLIN, 0};
        worker_feed(pool, &pool->workers[i], &next, count);
    }
    while (left) {
        if (poll(polled, bench_worker_count, -1) < 0 && errno != EINTR)
            bench_fail("poll: %s", strerror(errno));
        for (size_t i = 0; i < bench_worker_count; i++) {
            if (!polled[i].revents)
                continue;
            left -= worker_collect(pool, &pool->workers[i]);
            worker_feed(pool, &pool->workers[i], &next, count);
        }
    }
    for (long i = 0; i < count; i++)
        if (pool->results[i] != i)
            bench_fail("task %ld: result is %ld", i, pool->results[i]);
}

static void bursts(long window, long count) {
    bench_bursts(burst, pool_open(window, count > 2000 ? count : 2000), count);
}

void bench_pipes_one(long argument) {
    bursts(1, argument);
}

void bench_pipes_batch(long argument) {
    bursts(2 * batch_max, argument);
}

static void trip(void *context) {
    burst(context, 1);
}

void bench_pipes_trip(long argument) {
    bench_trips(trip, pool_open(1, 1), bench_repetitions(argument ? 50 : 20000), argument);
}

/* Large results: a byte asks for them, and they come through the pipe. */
void bench_pipes_result(long argument) {
    size_t size = (size_t)argument, count = bench_repetitions(500);
    int asked[2], given[2];
    char *buffer = bench_allocate(size);
    double *rates = bench_allocate(count * sizeof *rates);
    if (pipe2(asked, O_CLOEXEC) || pipe2(given, O_CLOEXEC))
        bench_fail("pipe: %s", strerror(errno));
    memset(buffer, 'x', size);
    if (bench_fork() == 0) {
        char byte;
        while (records_read(asked[0], &byte, 1, 1))
            bytes_write(given[1], buffer, size);
        _exit(0);
    }
    for (size_t i = 0; i < count; i++) {
        int64_t before_ns = bench_now_ns();
        bytes_write(asked[1], "?", 1);
        if (records_read(given[0], buffer, size, size) != size)
            bench_fail("the worker has gone");
        rates[i] = (double)size * 1e9 / (double)(bench_now_ns() - before_ns);
    }
    bench_report("bytes_per_second", bench_median(rates, count));
    free(rates);
    free(buffer);
}
