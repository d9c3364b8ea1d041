/* task.h - what the workers do: parse a document, or answer a roll call. */
#ifndef DOCUMENTS_TASK_H
#define DOCUMENTS_TASK_H

#include "document.h"

#include <pebble.h>

/* A result of parse_task(): its size depends on the title. */
typedef struct parse_result {
    document_facts facts;
    int64_t time_ns; /* that the task took */
    char title[];    /* with its end */
} parse_result;

/* How a task ended: its future's or map element's result or failure. */
typedef struct outcome {
    const parse_result *result;    /* NULL if it failed */
    const pebble_failure *failure; /* NULL if it did not */
} outcome;

/* A pebble_function. input: the path of a document, with its end. */
int parse_task(pebble_task *task, const void *input, size_t input_size);

/* How the task of a future that has ended ended; valid as long as the future. */
outcome future_outcome(pebble_future *future);

/* True if both are the same, the times apart. */
bool outcome_equal(outcome a, outcome b);

/* True if the outcome of parse_task() is what document_parse() itself gave. */
bool outcome_is(outcome parsed, int code, const document *page);

/* Has the roll call ready. To be called before the pool's first task, since the workers
 * must be forked from a program that has it. */
bool roll_call_prepare(int workers);

/* A pebble_function. Ends when as many workers as were announced run it together. */
int roll_call_task(pebble_task *task, const void *input, size_t input_size);

#endif
