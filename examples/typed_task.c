/* typed_task.c - a task with typed arguments and a typed result: no bytes in sight. */
#include "check.h"

#include <pebble.h>

/* Gives power_schedule() and power_result(). */
PEBBLE_TASK(double, power, (double, base), (int, exponent)) {
    double result = 1;

    if (exponent < 0)
        return pebble_task_fail(task, 1, "negative exponent: %d", exponent);
    for (int i = 0; i < exponent; i++)
        result *= base;
    return result;
}

int main(void) {
    pebble_pool *pool;
    pebble_future *right, *wrong;
    double result;

    TRY(pebble_process_pool_new(NULL, &pool));
    TRY(power_schedule(pool, PEBBLE_SECONDS(10), &right, 2.5, 3));
    TRY(power_schedule(pool, PEBBLE_SECONDS(10), &wrong, 2.5, -3));

    TRY(power_result(right, PEBBLE_FOREVER, &result));
    printf("2.5 to the power of 3 is %g\n", result);
    EXPECT(result == 15.625);

    EXPECT(power_result(wrong, PEBBLE_FOREVER, &result) == PEBBLE_ERR_TASK_FAILED);
    printf("2.5 to the power of -3: %s\n", pebble_future_failure(wrong)->message);

    pebble_future_unref(right);
    pebble_future_unref(wrong);
    check_finish(pool);
    return 0;
}
