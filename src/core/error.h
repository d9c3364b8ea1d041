/* Errors: the calling thread's last message. */
#ifndef PEBBLE_CORE_ERROR_H
#define PEBBLE_CORE_ERROR_H

#include "pebble.h"

/* Notes the message of a call that fails and returns error, so that a function can end with
 * `return error_set(PEBBLE_ERR_INVALID, "pebble_schedule: function is NULL");`. */
pebble_error error_set(pebble_error error, const char *format, ...) PEBBLE_PRINTF(2, 3);

/* The same for an errno value of the port layer: PEBBLE_ERR_NO_MEMORY for ENOMEM, else
 * PEBBLE_ERR_SYSTEM; the system's text is appended. what is "function: what failed". */
pebble_error error_set_system(int errno_value, const char *what);

#endif
