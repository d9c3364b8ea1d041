/* Pools. */
#ifndef PEBBLE_PYTHON_POOL_H
#define PEBBLE_PYTHON_POOL_H

#include "engine.h"

extern PyType_Spec pool_spec;

/* The interpreter is ending: threads get no more tasks. */
void pools_stop_threads(void);

#endif
