/* concurrent_thread.c - run a function in a thread of its own and wait for its result.
 *
 * Unlike a process of its own, it works on the program's memory: here two threads sort the
 * halves of an array in place, and main merges them.
 */
#include "check.h"

#include <pebble.h>

#include <string.h>
#include <sys/prctl.h>

enum { COUNT = 1000000, HALF = COUNT / 2 };

struct arguments {
    int *numbers;
    size_t count;
};

static int compare(const void *a, const void *b) {
    int left = *(const int *)a, right = *(const int *)b;

    return (left > right) - (left < right);
}

/* Sorts where the numbers are; the result is the name of the thread that did. */
static int sort(pebble_task *task, const void *input, size_t input_size) {
    const struct arguments *arguments = input;
    char name[16];

    (void)input_size;
    if (arguments->numbers == NULL)
        return pebble_task_fail(task, 1, "there is nothing to sort");
    qsort(arguments->numbers, arguments->count, sizeof *arguments->numbers, compare);
    prctl(PR_GET_NAME, name);
    return (int)pebble_task_write(task, name, strlen(name) + 1);
}

/* Starts to sort in a thread of that name. The future is the caller's to release. */
static pebble_future *start(const char *name, struct arguments arguments) {
    pebble_concurrent_options options = PEBBLE_CONCURRENT_OPTIONS_INIT;
    pebble_future *future;

    options.name = name; /* as top -H and debuggers show it */
    TRY(pebble_concurrent_thread(sort, &arguments, sizeof arguments, &options, &future));
    return future;
}

/* Waits until the thread of that name has sorted, and releases its future. */
static void finish(const char *name, pebble_future *future) {
    const void *sorter;

    TRY(pebble_future_result(future, PEBBLE_FOREVER, &sorter, NULL));
    printf("a half was sorted by thread %s\n", (const char *)sorter);
    EXPECT(strncmp(sorter, name, strlen(name)) == 0); /* a number follows */
    pebble_future_unref(future);
}

int main(void) {
    static int numbers[COUNT], merged[COUNT];
    const int *left = numbers, *right = numbers + HALF;
    pebble_concurrent_options options = PEBBLE_CONCURRENT_OPTIONS_INIT;
    pebble_future *lower, *upper, *none;

    for (size_t i = 0; i < COUNT; i++)
        numbers[i] = (int)(i * 7919 % COUNT); /* each below COUNT once, well shuffled */
    lower = start("lower", (struct arguments){numbers, HALF});
    upper = start("upper", (struct arguments){numbers + HALF, COUNT - HALF});
    finish("lower", lower);
    finish("upper", upper);
    for (int i = 0; i < COUNT; i++) {
        bool take_left =
            right == numbers + COUNT || (left < numbers + HALF && *left < *right);
        merged[i] = take_left ? *left++ : *right++;
        EXPECT(merged[i] == i);
    }
    printf("merged: %d numbers in order\n", COUNT);

    none = start("none", (struct arguments){0});
    EXPECT(pebble_future_wait(none, PEBBLE_FOREVER) == PEBBLE_OK);
    printf("an error comes as from a process: %s\n", pebble_future_failure(none)->message);
    EXPECT(pebble_future_failure(none)->kind == PEBBLE_ERR_TASK_FAILED);
    pebble_future_unref(none);

    options.timeout_ns = PEBBLE_SECONDS(1); /* who would end the thread? */
    EXPECT(pebble_concurrent_thread(sort, NULL, 0, &options, NULL) == PEBBLE_ERR_INVALID);
    printf("a timeout does not: %s\n", pebble_error_message());
    return 0;
}
