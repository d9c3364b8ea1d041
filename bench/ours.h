/* ours.h - what our contenders share. Only the public face of the library is used. */
#ifndef BENCH_OURS_H
#define BENCH_OURS_H

#include <pebble.h>

#include "bench.h"

/* Ends the measurement unless error is PEBBLE_OK. */
void ours_check(pebble_error error, const char *what);

pebble_pool *ours_open(bool processes, int workers);

/* Stops the pool and waits until it is gone. */
void ours_close(pebble_pool *pool);

/* A task that does nothing. */
int ours_no_op(pebble_task *task, const void *input, size_t input_size);

/* Performs so many no-op tasks, all scheduled first. futures has room for count. */
void ours_no_ops(pebble_pool *pool, pebble_future **futures, long count);

#endif
