/* Pools of threads. */
#ifndef PEBBLE_THREAD_POOL_H
#define PEBBLE_THREAD_POOL_H

#include "core/pool.h"

extern const pool_kind thread_pool_kind;

/* Takes the settings, on an error too. */
pebble_error thread_pool_new(pool_settings *settings, pebble_pool **pool);

#endif
