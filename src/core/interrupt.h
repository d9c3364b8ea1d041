/* Waits that end when a signal handler has run, for threads that want it so. */
#ifndef PEBBLE_CORE_INTERRUPT_H
#define PEBBLE_CORE_INTERRUPT_H

#include <errno.h>
#include <stdbool.h>

/* Of an errno value that a sleep returned: true if the calling thread's wait is to end for it. */
bool interrupt_ends_wait(int error);

#endif
