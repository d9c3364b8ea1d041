/* rows.c - what is measured, what is compared with what, and what is to be reached. */
#include "bench.h"

/* Contenders of libraries that may be missing. */
#ifdef BENCH_HAVE_GLIB
#define GLIB(function) function
#else
#define GLIB(function) NULL
#endif
#ifdef BENCH_HAVE_UV
#define UV(function) function
#else
#define UV(function) NULL
#endif
#ifdef BENCH_HAVE_OPENMP
#define OPENMP(function) function
#else
#define OPENMP(function) NULL
#endif
#ifdef BENCH_HAVE_TBB
#define TBB(function) function
#else
#define TBB(function) NULL
#endif

#define PIPES_ONE "pipe pool, one in flight"
#define FUTEX "futex ping-pong"
#define TBB_BARE "oneTBB, no futures"
#define TBB_FUTURE "oneTBB, a std::promise each"

#define PER_SECOND_LINE "tasks a second, median burst"
#define FIRST_LINE "tasks a second, first burst (memory still cold)"

const bench_row bench_rows[] = {
    {.name = "process",
     .title = "process pool, no-op tasks, schedule all, then collect all",
     .contenders = {{"pebble process pool", bench_ours_process},
                    {"the same, 8 bytes in, 8 bytes out", bench_ours_process_data},
                    {PIPES_ONE, bench_pipes_one},
                    {"pipe pool, in batches", bench_pipes_batch},
                    {"bare shared ring, one way", bench_ring}},
     .contender_count = 5,
     .arguments = {{20000, "20,000 tasks"}, {200000, "200,000 tasks"}},
     .argument_count = 2,
     .lines = {{"per_second",
                PER_SECOND_LINE,
                BENCH_PER_SECOND,
                {{false, 2e6, NULL}, {false, 20, PIPES_ONE}},
                2},
               {"first_per_second", FIRST_LINE, BENCH_PER_SECOND, {{0}}, 0}},
     .line_count = 2},

    {.name = "thread",
     .title = "thread pool, no-op tasks, schedule all, then collect all",
     .contenders = {{"pebble thread pool", bench_ours_thread},
                    {"the same, 8 bytes in, 8 bytes out", bench_ours_thread_data},
                    {"GLib GThreadPool", GLIB(bench_glib)},
                    {"libuv uv_queue_work", UV(bench_uv)},
                    {"OpenMP tasks", OPENMP(bench_openmp)},
                    {TBB_BARE, TBB(bench_tbb)},
                    {TBB_FUTURE, TBB(bench_tbb_future)}},
     .contender_count = 7,
     .arguments = {{20000, "20,000 tasks"}, {200000, "200,000 tasks"}},
     .argument_count = 2,
     .lines = {{"per_second",
                PER_SECOND_LINE,
                BENCH_PER_SECOND,
                {{false, 1, TBB_FUTURE}, {false, 1, TBB_BARE}},
                2},
               {"first_per_second", FIRST_LINE, BENCH_PER_SECOND, {{0}}, 0}},
     .line_count = 2},

    {.name = "asleep",
     .title = "round trip of one task, workers asleep",
     .contenders = {{"pebble process pool", bench_ours_process_trip},
                    {"pebble thread pool", bench_ours_thread_trip},
                    {FUTEX, bench_futex_trip},
                    {"pipe pool", bench_pipes_trip}},
     .contender_count = 4,
     .arguments = {{20000000, "20 ms pause before each"}},
     .argument_count = 1,
     .lines =
         {{"median_ns", "median round trip", BENCH_NANOSECONDS, {{true, 1.3, FUTEX}}, 1}},
     .line_count = 1},

    {.name = "busy",
     .title = "round trip of one task, back to back",
     .contenders = {{"pebble process pool", bench_ours_process_trip},
                    {"pebble thread pool", bench_ours_thread_trip},
                    {FUTEX, bench_futex_trip},
                    {"spinning ping-pong", bench_spin_trip},
                    {"pipe pool", bench_pipes_trip}},
     .contender_count = 5,
     .arguments = {{0, "no pause"}},
     .argument_count = 1,
     .lines =
         {{"median_ns", "median round trip", BENCH_NANOSECONDS, {{true, 3000, NULL}}, 1}},
     .line_count = 1},

    {.name = "timeout",
     .title = "a task that loops for ever, timeout 50 ms",
     .contenders = {{"pebble process pool", bench_ours_timeout},
                    {"bare child: ppoll, kill, waitpid", bench_fork_timeout}},
     .contender_count = 2,
     .arguments = {{50000000, "20 tasks, one after another"}},
     .argument_count = 1,
     .lines = {{"median_ns",
                "from the deadline until the future has ended: median",
                BENCH_NANOSECONDS,
                {{true, 2e6, NULL}},
                1},
               {"worst_ns", "the same: worst of 20", BENCH_NANOSECONDS, {{0}}, 0}},
     .line_count = 2},

    {.name = "crash",
     .title = "a task that ends its worker, one worker",
     .contenders = {{"pebble process pool", bench_ours_crash},
                    {"bare child: waitpid, fork, pipe", bench_fork_crash}},
     .contender_count = 2,
     .arguments = {{0, "SIGKILL to itself"}, {1, "write through a null pointer"}},
     .argument_count = 2,
     .lines = {{"replaced_ns",
                "from the future's end to the result of the next task: median",
                BENCH_NANOSECONDS,
                {{true, 1e6, NULL}},
                1},
               {"replaced_worst_ns", "the same: worst of 20", BENCH_NANOSECONDS, {{0}}, 0},
               {"ended_ns",
                "from the crash to the future's end: median",
                BENCH_NANOSECONDS,
                {{0}},
                0}},
     .line_count = 3},

    {.name = "result",
     .title = "results, one task at a time",
     .contenders = {{"pebble process pool", bench_ours_result},
                    {"memcpy, warm", bench_memcpy},
                    {"pipe pool", bench_pipes_result}},
     .contender_count = 3,
     .arguments = {{1 << 20, "1 MiB"}},
     .argument_count = 1,
     .lines = {{"bytes_per_second",
                "bytes a second, whole round trip",
                BENCH_BYTES_PER_SECOND,
                {{false, 0.5, "memcpy, warm"}},
                1}},
     .line_count = 1},

    {.name = "input",
     .title = "inputs, not copied by the caller, one task at a time",
     .contenders = {{"pebble process pool", bench_ours_input},
                    {"memcpy, warm", bench_memcpy}},
     .contender_count = 2,
     .arguments = {{1 << 20, "1 MiB"}},
     .argument_count = 1,
     .lines = {{"bytes_per_second",
                "bytes a second, whole round trip",
                BENCH_BYTES_PER_SECOND,
                {{0}},
                0}},
     .line_count = 1},

    {.name = "both",
     .title = "input sent back as the result, one task at a time",
     .contenders = {{"pebble process pool", bench_ours_both},
                    {"memcpy twice, warm", bench_memcpy_both}},
     .contender_count = 2,
     .arguments = {{100 << 20, "100 MiB each way"}},
     .argument_count = 1,
     .lines = {{"bytes_per_second",
                "bytes a second, both ways together",
                BENCH_BYTES_PER_SECOND,
                {{0}},
                0}},
     .line_count = 1},

    {.name = "memory",
     .title = "queued no-op tasks with a future each",
     .contenders = {{"pebble process pool", bench_ours_memory}},
     .contender_count = 1,
     .arguments = {{200000, "200,000 tasks behind one that sleeps"}},
     .argument_count = 1,
     .lines = {{"allocated_bytes",
                "memory from malloc, a task",
                BENCH_BYTES,
                {{true, 200, NULL}},
                1},
               {"resident_bytes",
                "resident memory, a task",
                BENCH_BYTES,
                {{true, 200, NULL}},
                1}},
     .line_count = 2},

    {.name = "idle",
     .title = "an idle pool after 20,000 tasks, all its threads and processes",
     .contenders = {{"pebble process pool", bench_ours_idle_process},
                    {"pebble thread pool", bench_ours_idle_thread}},
     .contender_count = 2,
     .arguments = {{2000000000, "2 s"}},
     .argument_count = 1,
     .lines = {{"cpu_ns", "processor time", BENCH_NANOSECONDS, {{true, 0, NULL}}, 1},
               {"switches", "context switches", BENCH_COUNT, {{true, 0, NULL}}, 1},
               {"threads", "threads looked at", BENCH_COUNT, {{0}}, 0}},
     .line_count = 3},
};

const size_t bench_row_count = sizeof bench_rows / sizeof *bench_rows;
