/* A module that test_fork and test_start_methods load when a pool's processes are there already.
 * Its tasks tell their result as an error's code: they use nothing of the program. */
#include <pebble.h>

int module_double(pebble_task *task, const void *input, size_t size);
pebble_function module_static(void);

__attribute__((visibility("default"))) int module_double(pebble_task *task,
                                                         const void *input, size_t size) {
    (void)task, (void)size;
    return *(const int *)input * 2;
}

static int triple(pebble_task *task, const void *input, size_t size) {
    (void)task, (void)size;
    return *(const int *)input * 3;
}

/* A function without a name. */
__attribute__((visibility("default"))) pebble_function module_static(void) {
    return triple;
}
