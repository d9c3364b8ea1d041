/* unstable_function.c - call code that hangs, fails, exits or crashes.
 *
 * The specification's second example, with every way that a call may end.
 */
#include "check.h"

#include <pebble.h>

#include <signal.h>
#include <string.h>
#include <unistd.h>

#define TIMEOUT_NS PEBBLE_SECONDS(0.5)

/* Stands for a third party's library. */
static __attribute__((noinline)) int unstable_function(pebble_task *task,
                                                       const char *mood) {
    volatile int turns = 0;
    volatile int *volatile nowhere = NULL;

    if (strcmp(mood, "hang") == 0)
        for (;;)
            turns++;
    if (strcmp(mood, "error") == 0)
        return pebble_task_fail(task, 42, "I cannot work in this mood: %s", mood);
    if (strcmp(mood, "exit") == 0)
        _exit(3);
    if (strcmp(mood, "crash") == 0)
        *nowhere = 1;
    return 0;
}

static int function(pebble_task *task, const void *input, size_t input_size) {
    int code = unstable_function(task, input);

    return code != 0 ? code : (int)pebble_task_write(task, input, input_size);
}

/* Calls the function in a process of its own, prints how that ended and returns it. The
 * future is the caller's to release. */
static pebble_error call(const char *mood, pebble_future **future) {
    pebble_concurrent_options options = PEBBLE_CONCURRENT_OPTIONS_INIT;
    const pebble_failure *failure;
    const void *data;
    pebble_error error;

    options.timeout_ns = TIMEOUT_NS;
    TRY(pebble_concurrent_process(function, mood, strlen(mood) + 1, &options, future));
    error = pebble_future_result(*future, PEBBLE_FOREVER, &data, NULL);
    failure = pebble_future_failure(*future); /* NULL after PEBBLE_OK */

    printf("%-6s ", mood);
    switch (error) {
    case PEBBLE_OK:
        printf("unstable_function returned \"%s\"\n", (const char *)data);
        break;
    case PEBBLE_ERR_TASK_TIMEOUT:
        printf("unstable_function took longer than %.1f seconds\n",
               (double)failure->timeout_ns / 1e9);
        break;
    case PEBBLE_ERR_TASK_EXPIRED:
        printf("%s. Exit code: %d\n", failure->message, failure->exit_code);
        if (failure->backtrace != NULL)
            printf("%s\n", failure->backtrace);
        break;
    case PEBBLE_ERR_TASK_FAILED:
        printf("unstable_function returned error %d: %s\n", failure->code,
               failure->message);
        break;
    default:
        printf("%s\n", pebble_error_text(error));
        break;
    }
    return error;
}

int main(void) {
    pebble_future *future;
    const pebble_failure *failure;

    EXPECT(call("well", &future) == PEBBLE_OK);
    EXPECT(pebble_future_failure(future) == NULL);
    pebble_future_unref(future);

    EXPECT(call("hang", &future) == PEBBLE_ERR_TASK_TIMEOUT);
    EXPECT(pebble_future_failure(future)->timeout_ns == TIMEOUT_NS);
    pebble_future_unref(future);

    EXPECT(call("error", &future) == PEBBLE_ERR_TASK_FAILED);
    EXPECT(pebble_future_failure(future)->code == 42);
    pebble_future_unref(future);

    EXPECT(call("exit", &future) == PEBBLE_ERR_TASK_EXPIRED);
    EXPECT(pebble_future_failure(future)->exit_code == 3);
    pebble_future_unref(future);

    EXPECT(call("crash", &future) == PEBBLE_ERR_TASK_EXPIRED);
    failure = pebble_future_failure(future);
    EXPECT(failure->signal == SIGSEGV && failure->exit_code == -SIGSEGV);
    EXPECT(failure->backtrace != NULL);
    EXPECT(strstr(failure->backtrace, "unstable_function") != NULL);
    pebble_future_unref(future);
    return 0;
}
