/* Threads of the engine, detached. Those of its own have every signal blocked, so that the program's
 * handlers run in the program's own threads; those that run the user's functions have the signal mask
 * of whoever started them, as with pthread_create(). Signals that a fault raises in the thread itself
 * are never blocked: the kernel would end the program instead of calling its handler. */
#include "platform/platform.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>

enum { NAME_SIZE = 16 }; /* what the kernel keeps, with the ending zero */

typedef struct thread_start {
    void (*function)(void *);
    void *context;
    char name[NAME_SIZE];
} thread_start;

static void *run(void *argument) {
    thread_start start = *(thread_start *)argument;
    os_free(argument);
    os_thread_set_name(start.name);
    start.function(start.context);
    return NULL;
}

static int create_detached(thread_start *start) {
    pthread_attr_t attributes;
    pthread_t thread;
    int error = pthread_attr_init(&attributes);
    if (error != 0)
        return error;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    error = os_fault_hits(OS_FAULT_THREAD)
                ? EAGAIN
                : pthread_create(&thread, &attributes, run, start);
    pthread_attr_destroy(&attributes);
    return error;
}

int os_thread_start_for_user(void (*function)(void *), void *context, const char *name) {
    thread_start *start = os_alloc(sizeof *start);
    if (start == NULL)
        return ENOMEM;
    start->function = function;
    start->context = context;
    snprintf(start->name, sizeof start->name, "%s", name);
    int error = create_detached(start);
    if (error != 0)
        os_free(start);
    return error;
}

int os_thread_start(void (*function)(void *), void *context, const char *name) {
    static const int faults[] = {SIGSEGV, SIGBUS,  SIGFPE, SIGILL,
                                 SIGTRAP, SIGABRT, SIGSYS};
    sigset_t mask, before;
    sigfillset(&mask);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        sigdelset(&mask, faults[i]);
    pthread_sigmask(SIG_SETMASK, &mask, &before);
    int error = os_thread_start_for_user(function, context, name);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

void os_thread_set_name(const char *name) {
    prctl(PR_SET_NAME, name, 0, 0, 0);
}
