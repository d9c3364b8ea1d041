/* tbb.cpp - oneTBB's task_group, with results in an array, and with a std::promise and
 * std::future each. The caller works along in wait(), as oneTBB is meant to be used: two
 * threads in all. */
#include "bench.h"

#include <future>
#include <oneapi/tbb/task_arena.h>
#include <oneapi/tbb/task_group.h>
#include <utility>
#include <vector>

namespace {

struct context {
    tbb::task_arena arena{bench_worker_count};
    std::vector<long> results;
};

void check(long index, long result) {
    if (result != index)
        bench_fail("task %ld: result is %ld", index, result);
}

void burst(void *argument, long count) {
    context *self = static_cast<context *>(argument);
    self->results.assign(static_cast<std::size_t>(count), -1);
    long *results = self->results.data();
    self->arena.execute([=] {
        tbb::task_group group;
        for (long i = 0; i < count; i++)
            group.run([=] { results[i] = i; });
        group.wait();
    });
    for (long i = 0; i < count; i++)
        check(i, results[i]);
}

/* task_group calls its functions as const. */
struct promised_task {
    long index;
    mutable std::promise<long> promise;

    void operator()() const {
        promise.set_value(index);
    }
};

void burst_with_futures(void *argument, long count) {
    context *self = static_cast<context *>(argument);
    self->arena.execute([=] {
        tbb::task_group group;
        std::vector<std::future<long>> futures;
        futures.reserve(static_cast<std::size_t>(count));
        for (long i = 0; i < count; i++) {
            std::promise<long> promise;
            futures.push_back(promise.get_future());
            group.run(promised_task{i, std::move(promise)});
        }
        group.wait();
        for (long i = 0; i < count; i++)
            check(i, futures[static_cast<std::size_t>(i)].get());
    });
}

} // namespace

extern "C" void bench_tbb(long argument) {
    context self;
    bench_bursts(burst, &self, argument);
}

extern "C" void bench_tbb_future(long argument) {
    context self;
    bench_bursts(burst_with_futures, &self, argument);
}
