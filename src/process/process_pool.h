/* Pools of processes. */
#ifndef PEBBLE_PROCESS_PROCESS_POOL_H
#define PEBBLE_PROCESS_PROCESS_POOL_H

#include "core/pool.h"

extern const pool_kind process_pool_kind;

/* Takes the settings, on an error too. */
pebble_error process_pool_new(pool_settings *settings, pebble_pool **pool);

#endif
