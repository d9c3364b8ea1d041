/* concurrent_process.c - run a function in a process of its own and wait for its result.
 *
 * The specification's first example: function(1, kwarg=1). C's idiom for keyword
 * arguments is a struct with designated initializers: what is not named is zero.
 */
#include "check.h"

#include <pebble.h>

#include <unistd.h>

struct arguments {
    int arg;
    int kwarg;
};

static int function(pebble_task *task, const void *input, size_t input_size) {
    const struct arguments *arguments = input;
    int sum = arguments->arg + arguments->kwarg;

    (void)input_size;
    return (int)pebble_task_write(task, &sum, sizeof sum);
}

/* Runs function in a process of its own and returns its result. */
static int call(struct arguments arguments) {
    pebble_concurrent_options options = PEBBLE_CONCURRENT_OPTIONS_INIT;
    pebble_future *future;
    int sum;

    options.name = "adder"; /* as ps and top show it */
    TRY(pebble_concurrent_process(function, &arguments, sizeof arguments, &options,
                                  &future));
    TRY(pebble_future_copy_result(future, PEBBLE_FOREVER, &sum, sizeof sum));
    printf("%d + %d = %d, computed by process %d for process %d\n", arguments.arg,
           arguments.kwarg, sum, (int)pebble_future_pid(future), (int)getpid());
    EXPECT(pebble_future_pid(future) != getpid());
    pebble_future_unref(future);
    return sum;
}

int main(void) {
    EXPECT(call((struct arguments){.arg = 1, .kwarg = 1}) == 2);
    EXPECT(call((struct arguments){.arg = 1}) == 1);
    return 0;
}
