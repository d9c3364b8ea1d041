/* bench.h - what the parts of the benchmark program share.
 *
 * The driver (bench.c, run.c, report.c) takes the rows of rows.c one by one and executes
 * itself afresh for each measurement. In that fresh process one contender runs, with the
 * helpers of measure.c, and reports figures by key; rows.c says what is compared with
 * what. */
#ifndef BENCH_H
#define BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ==== For contenders: in the fresh process (measure.c) ============================== */

enum { bench_worker_count = 2 };

/* True if --quick was given: contenders then do a fifth of the repetitions. */
extern bool bench_quick;

typedef void bench_function(long argument);

int64_t bench_now_ns(void);
void bench_sleep_ns(int64_t time_ns);

/* How often to repeat: count, or a fifth of it if --quick. */
size_t bench_repetitions(size_t count);

/* Reports a figure; each key once. */
void bench_report(const char *key, double value);

/* Ends the measurement as failed. */
#if defined(__GNUC__)
__attribute__((noreturn, format(printf, 1, 2)))
#endif
void bench_fail(const char *format, ...);

/* malloc, memory that fork shares, and fork of a child that ends with its parent; each of
 * them ends the measurement if it fails. */
void *bench_allocate(size_t size);
void *bench_share(size_t size);
int bench_fork(void);

double bench_median(double *values, size_t count);
double bench_worst(const double *values, size_t count);

/* Has burst perform so many no-op tasks, and check their results, again and again for
 * about a second, at most five times. Reports the median as per_second and the first as
 * first_per_second. */
typedef void bench_burst(void *context, long count);
void bench_bursts(bench_burst *burst, void *context, long count);

/* Has trip do one round trip, again and again, after pause_ns each. Reports the median as
 * median_ns. */
typedef void bench_trip(void *context);
void bench_trips(bench_trip *trip, void *context, size_t count, int64_t pause_ns);

/* ==== Rows (rows.c) ================================================================= */

typedef enum bench_unit {
    BENCH_PER_SECOND,
    BENCH_NANOSECONDS,
    BENCH_BYTES_PER_SECOND,
    BENCH_BYTES,
    BENCH_COUNT
} bench_unit;

enum {
    bench_contenders_max = 8,
    bench_arguments_max = 4,
    bench_lines_max = 4,
    bench_targets_max = 3,
    bench_rounds_max = 99
};

/* run is NULL if the library that it needs was not there at build time. */
typedef struct bench_contender {
    const char *name;
    bench_function *run;
} bench_contender;

typedef struct bench_argument {
    long value;
    const char *text;
} bench_argument;

/* What the first contender should reach: a figure, or a ratio to a peer's. */
typedef struct bench_target {
    bool at_most; /* else at least */
    double limit;
    const char *peer; /* NULL if limit is a figure */
} bench_target;

/* One figure that contenders report. */
typedef struct bench_line {
    const char *key;
    const char *title;
    bench_unit unit;
    bench_target targets[bench_targets_max];
    size_t target_count;
} bench_line;

/* Contenders measured in turn, once for each argument. The first is ours. */
typedef struct bench_row {
    const char *name;
    const char *title;
    bench_contender contenders[bench_contenders_max];
    bench_argument arguments[bench_arguments_max];
    bench_line lines[bench_lines_max];
    size_t contender_count, argument_count, line_count;
} bench_row;

extern const bench_row bench_rows[];
extern const size_t bench_row_count;

/* ==== Fresh processes (run.c) ======================================================= */

/* The figures of one row and argument: samples[line][contender][0 .. count-1]. */
typedef struct bench_results {
    double samples[bench_lines_max][bench_contenders_max][bench_rounds_max];
    size_t counts[bench_lines_max][bench_contenders_max];
    size_t failures[bench_contenders_max];
} bench_results;

/* Measures a contender once, in a fresh process, and adds what it reports to results. */
void bench_run_once(const bench_row *row, size_t argument, size_t contender,
                    bench_results *results);

/* ==== Table and JSON (report.c) ===================================================== */

/* json may be NULL. */
void bench_print_start(FILE *json, int rounds);
void bench_print_row(FILE *json, const bench_row *row, size_t argument,
                     const bench_results *results);
void bench_print_end(FILE *json);

/* ==== Contenders ==================================================================== */

/* ours_tasks.c */
bench_function bench_ours_process, bench_ours_process_data, bench_ours_thread,
    bench_ours_thread_data, bench_ours_process_trip, bench_ours_thread_trip;
/* ours_failures.c */
bench_function bench_ours_timeout, bench_ours_crash;
/* ours_data.c */
bench_function bench_ours_result, bench_ours_input, bench_ours_both;
/* ours_quiet.c */
bench_function bench_ours_memory, bench_ours_idle_process, bench_ours_idle_thread;

/* pipes.c: the pool that a C programmer writes by hand */
bench_function bench_pipes_one, bench_pipes_batch, bench_pipes_trip, bench_pipes_result;
/* bare.c: what the machine does without any pool */
bench_function bench_ring, bench_futex_trip, bench_spin_trip, bench_memcpy,
    bench_memcpy_both;
/* forks.c: a process for each task */
bench_function bench_fork_timeout, bench_fork_crash;
/* glib.c, uv.c, openmp.c, tbb.cpp: where the library is there */
bench_function bench_glib, bench_uv, bench_openmp, bench_tbb, bench_tbb_future;

#ifdef __cplusplus
}
#endif

#endif
