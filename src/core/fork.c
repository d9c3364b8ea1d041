#include "core/fork.h"

#include <pthread.h>

#include "platform/platform.h"

uint32_t fork_epoch;

static pthread_once_t watching = PTHREAD_ONCE_INIT;
static int watch_error;

/* Runs in the child, which has one thread: no lock may be taken, since any may have been held. */
static void in_child(void) {
    fork_epoch++;
    os_fd_close_inherited(); /* so that there is a number to look with */
    os_making_drop_inherited();
}

static void watch(void) {
    watch_error = pthread_atfork(os_fd_fork_begins, os_fd_fork_ended, in_child);
}

/* When the library is loaded: a fork that has begun before its handlers are known would leave them out. */
__attribute__((constructor)) static void watch_early(void) {
    fork_watch();
}

int fork_watch(void) {
    pthread_once(&watching, watch);
    return watch_error;
}
