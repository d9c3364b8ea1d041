/* Messages between the program and a zygote: SOCK_SEQPACKET keeps their boundaries, SCM_RIGHTS
 * carries descriptors. */
#include "platform/platform.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

typedef union control_buffer {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int) * OS_MESSAGE_MAX_FDS)];
} control_buffer;

int os_message_pair(int fds[2]) {
    int made[2];
    int type = SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK;
    int error = 0;
    os_making_begins();
    if (os_attempt(OS_FAULT_FD, EMFILE, -1, socketpair(AF_UNIX, type, 0, made)) != 0)
        error = errno;
    for (int i = 0; error == 0 && i < 2; i++) {
        os_fd_made(made[i]);
        fds[i] = made[i];
    }
    os_making_ended();
    return error;
}

static void attach_fds(struct msghdr *message, control_buffer *control, const int *fds,
                       size_t fd_count) {
    memset(control, 0, sizeof *control);
    message->msg_control = control->bytes;
    message->msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
    struct cmsghdr *header = CMSG_FIRSTHDR(message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
    memcpy(CMSG_DATA(header), fds, sizeof(int) * fd_count);
}

int os_message_send(int fd, const void *data, size_t size, const int *fds,
                    size_t fd_count) {
    control_buffer control;
    struct iovec piece = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    if (fd_count > 0)
        attach_fds(&message, &control, fds, fd_count);
    ssize_t sent;
    int cancel_state;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
    do
        sent = os_attempt(OS_FAULT_MESSAGE, ENOBUFS, -1,
                          sendmsg(fd, &message, MSG_NOSIGNAL));
    while (sent < 0 && errno == EINTR);
    pthread_setcancelstate(cancel_state, NULL);
    if (sent >= 0)
        return 0;
    return errno == ECONNRESET || errno == ENOTCONN ? EPIPE : errno;
}

static size_t take_fds(struct msghdr *message, int *fds, size_t capacity) {
    size_t taken = 0;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header != NULL;
         header = CMSG_NXTHDR(message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
            if (taken < capacity) {
                os_fd_made(fd);
                fds[taken++] = fd;
            } else {
                close(fd);
            }
        }
    }
    return taken;
}

static int receive(int fd, void *data, size_t capacity, size_t *size, int *fds,
                   size_t fd_capacity, size_t *fd_count) {
    control_buffer control;
    struct iovec piece = {.iov_base = data, .iov_len = capacity};
    struct msghdr message = {.msg_iov = &piece,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    ssize_t received;
    do /* ECONNRESET comes once, and first, if the other end was closed with messages unread: what it had
        * sent before is still to be read */
        received = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    while (received < 0 && (errno == EINTR || errno == ECONNRESET));
    if (received < 0)
        return errno;
    if (received == 0) /* no message of ours is empty */
        return EPIPE;
    *fd_count = take_fds(&message, fds, fd_capacity);
    *size = (size_t)received;
    return 0;
}

int os_message_receive(int fd, void *data, size_t capacity, size_t *size, int *fds,
                       size_t fd_capacity, size_t *fd_count) {
    os_making_begins(); /* of the descriptors that come with it */
    int error = receive(fd, data, capacity, size, fds, fd_capacity, fd_count);
    os_making_ended();
    return error;
}
