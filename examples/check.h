/* check.h - what the examples do when something is not as it should be: say so and end.
 *
 * A real program would handle errors where they happen. These are short and may give up.
 */
#ifndef EXAMPLES_CHECK_H
#define EXAMPLES_CHECK_H

#include <pebble.h>

#include <stdio.h>
#include <stdlib.h>

/* Calls the library, and ends the program if that fails. */
#define TRY(call) check_call((call), #call, __FILE__, __LINE__)

/* Ends the program if the condition does not hold. */
#define EXPECT(condition) check_condition((condition), #condition, __FILE__, __LINE__)

static inline void check_call(pebble_error error, const char *call, const char *file,
                              int line) {
    if (error == PEBBLE_OK)
        return;
    fflush(stdout);
    fprintf(stderr, "%s:%d: %s: %s: %s\n", file, line, call, pebble_error_name(error),
            pebble_error_message());
    exit(EXIT_FAILURE);
}

static inline void check_condition(bool holds, const char *condition, const char *file,
                                   int line) {
    if (holds)
        return;
    fflush(stdout);
    fprintf(stderr, "%s:%d: not so: %s\n", file, line, condition);
    exit(EXIT_FAILURE);
}

/* Ends a pool in order: what is scheduled is performed, then its workers go. */
static inline void check_finish(pebble_pool *pool) {
    TRY(pebble_pool_close(pool));
    TRY(pebble_pool_join(pool, PEBBLE_FOREVER));
    pebble_pool_free(pool);
}

#endif
