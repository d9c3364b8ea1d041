/* epoll, with a timerfd for exact deadlines and an eventfd for wakes. */
#include "platform/platform.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS_MAX = 64 };

struct os_poller {
    int epoll_fd;
    int timer_fd;
    int wake_fd;
};

static int control(os_poller *poller, int operation, int fd, uint32_t events,
                   void *context) {
    struct epoll_event event = {.events = events, .data.ptr = context};
    return epoll_ctl(poller->epoll_fd, operation, fd, &event) == 0 ? 0 : errno;
}

static int add(os_poller *poller, int fd, uint32_t events, void *context) {
    return os_fault_hits(OS_FAULT_FD)
               ? ENOSPC
               : control(poller, EPOLL_CTL_ADD, fd, events, context);
}

/* They have no identity that a child could be told, but are there before any zygote is forked. */
static int make_epoll_and_timer(os_poller *poller) {
    poller->epoll_fd = os_attempt(OS_FAULT_FD, EMFILE, -1, epoll_create1(EPOLL_CLOEXEC));
    if (poller->epoll_fd < 0)
        return errno;
    os_fd_register(poller->epoll_fd);
    poller->timer_fd =
        os_attempt(OS_FAULT_FD, EMFILE, -1,
                   timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
    if (poller->timer_fd < 0)
        return errno;
    os_fd_register(poller->timer_fd);
    return 0;
}

static int open_all(os_poller *poller) {
    os_making_begins();
    int error = make_epoll_and_timer(poller);
    os_making_ended();
    if (error == 0)
        error = os_bell_new(&poller->wake_fd);
    /* Edge triggered both: neither is ever read. A NULL context tells them from the others. */
    if (error == 0)
        error = add(poller, poller->timer_fd, EPOLLIN | EPOLLET, NULL);
    if (error == 0)
        error = add(poller, poller->wake_fd, EPOLLIN | EPOLLET, NULL);
    return error;
}

int os_poller_new(os_poller **poller) {
    os_poller *made = os_alloc(sizeof *made);
    if (made == NULL)
        return ENOMEM;
    *made = (os_poller){-1, -1, -1};
    int error = open_all(made);
    if (error != 0) {
        os_poller_free(made);
        return error;
    }
    *poller = made;
    return 0;
}

void os_poller_free(os_poller *poller) {
    if (poller == NULL)
        return;
    os_fd_close(poller->wake_fd);
    os_fd_close(poller->timer_fd);
    os_fd_close(poller->epoll_fd);
    os_free(poller);
}

int os_poller_add(os_poller *poller, int fd, void *context) {
    return add(poller, fd, EPOLLIN | EPOLLRDHUP, context);
}

int os_poller_add_bell(os_poller *poller, int fd, void *context) {
    return add(poller, fd, EPOLLIN | EPOLLET, context);
}

/* Anything set anew is reported if it is ready; an eventfd is, to be read or to be written. */
void os_poller_ring(os_poller *poller, int fd, void *context) {
    control(poller, EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLOUT | EPOLLET, context);
}

int os_poller_want_write(os_poller *poller, int fd, void *context, bool want) {
    uint32_t events = EPOLLIN | EPOLLRDHUP | (want ? EPOLLOUT : 0);
    return control(poller, EPOLL_CTL_MOD, fd, events, context);
}

void os_poller_remove(os_poller *poller, int fd) {
    control(poller, EPOLL_CTL_DEL, fd, 0, NULL);
}

size_t os_poller_wait(os_poller *poller, os_poller_event *events, size_t capacity) {
    struct epoll_event ready[EVENTS_MAX];
    int room = capacity < EVENTS_MAX ? (int)capacity : EVENTS_MAX;
    int count;
    do /* a stopped process that goes on is told so even if there are events */
        count = epoll_wait(poller->epoll_fd, ready, room, -1);
    while (count < 0 && errno == EINTR);
    size_t reported = 0;
    for (int i = 0; i < count; i++) {
        uint32_t bits = ready[i].events;
        if (ready[i].data.ptr == NULL)
            continue;
        events[reported++] = (os_poller_event){
            .context = ready[i].data.ptr,
            .readable = (bits & EPOLLIN) != 0,
            .writable = (bits & EPOLLOUT) != 0,
            .hung_up = (bits & (EPOLLHUP | EPOLLRDHUP | EPOLLERR)) != 0,
        };
    }
    return reported;
}

void os_poller_set_timer(os_poller *poller, int64_t deadline_ns) {
    struct itimerspec when = {0};
    if (deadline_ns != OS_NO_DEADLINE) {
        /* Zero would disarm; one that has passed rings at once. */
        int64_t at_ns = deadline_ns > 0 ? deadline_ns : 1;
        when.it_value.tv_sec = (time_t)(at_ns / 1000000000);
        when.it_value.tv_nsec = at_ns % 1000000000;
    }
    timerfd_settime(poller->timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

void os_poller_wake(os_poller *poller) {
    os_bell_ring(poller->wake_fd);
}
