/* hostile.h - inputs that harm whoever handles them, and how their tasks must end. */
#ifndef DOCUMENTS_HOSTILE_H
#define DOCUMENTS_HOSTILE_H

#include <pebble.h>

typedef struct hostile_input {
    const char *name;
    pebble_function function;
    pebble_error kind;        /* of the failure that it must end with */
    int code;                 /* TASK_FAILED: of the error */
    int signal;               /* TASK_EXPIRED: that ended its process, 0 if none */
    const char *in_backtrace; /* the function that its backtrace must name, or NULL */
} hostile_input;

extern const hostile_input hostile_inputs[];
extern const size_t hostile_input_count;

/* True if the task that ended so ended as it must. */
bool hostile_as_expected(const hostile_input *input, const pebble_failure *failure);

#endif
