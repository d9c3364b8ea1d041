/* The set of descriptors that the engine holds: a two-level bitmap of atomic words, so that the
 * child of a fork can read it whatever the other threads were doing. Chunks are never freed.
 *
 * A fork copies the table of descriptors first, the memory with this set later. One that is closed between
 * would be in the child, and not in its set. So, while a fork is under way, what is to be closed waits for
 * the fork's end (leaving), and stays in the set; nobody waits for that. One that is being made: making.c. */
#include "platform/platform.h"

#include <pthread.h>
#include <string.h>
#include <unistd.h>

enum { BITS = 64, CHUNK_WORDS = 64, CHUNK_FDS = BITS * CHUNK_WORDS, CHUNKS = 1024 };

typedef struct fd_chunk {
    _Atomic uint64_t words[CHUNK_WORDS];
    uint64_t leaving[CHUNK_WORDS]; /* under fork_lock; they are in words, too */
} fd_chunk;

static fd_chunk first_chunk; /* most programs never need another */
static _Atomic(fd_chunk *) chunks[CHUNKS] = {&first_chunk};

static pthread_mutex_t fork_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic int forks; /* under way */
static _Atomic uint32_t forks_begun;
static bool any_leaving;

/* Of this thread: what the child of its next forks keeps. */
static _Thread_local int kept_fds[OS_KEPT_MAX];
static _Thread_local size_t kept_count;

static fd_chunk *chunk_of(int fd, bool make) {
    unsigned index = (unsigned)fd / CHUNK_FDS;
    if (index >= CHUNKS)
        return NULL;
    fd_chunk *known = atomic_load_explicit(&chunks[index], memory_order_acquire);
    if (known != NULL || !make)
        return known;
    fd_chunk *fresh = os_alloc_zeroed(sizeof *fresh);
    if (fresh == NULL)
        return NULL;
    if (atomic_compare_exchange_strong(&chunks[index], &known, fresh))
        return fresh;
    os_free(fresh);
    return known;
}

static _Atomic uint64_t *word_of(int fd, bool make) {
    fd_chunk *chunk = chunk_of(fd, make);
    return chunk != NULL ? &chunk->words[(unsigned)fd % CHUNK_FDS / BITS] : NULL;
}

static uint64_t bit_of(int fd) {
    return UINT64_C(1) << ((unsigned)fd % BITS);
}

/* One that finds no memory stays unregistered: it is close-on-exec all the same. */
void os_fd_register(int fd) {
    _Atomic uint64_t *word = word_of(fd, true);
    if (word != NULL)
        atomic_fetch_or(word, bit_of(fd));
}

bool os_fd_is_registered(int fd) {
    const _Atomic uint64_t *word = word_of(fd, false);
    return word != NULL && (atomic_load(word) & bit_of(fd)) != 0;
}

static void forget(int fd) {
    _Atomic uint64_t *word = word_of(fd, false);
    if (word != NULL)
        atomic_fetch_and(word, ~bit_of(fd));
}

/* False: no fork is under way, or it is not in the set. Under fork_lock. */
static bool leave_later(int fd) {
    if (forks == 0 || !os_fd_is_registered(fd))
        return false;
    chunk_of(fd, false)->leaving[(unsigned)fd % CHUNK_FDS / BITS] |= bit_of(fd);
    any_leaving = true;
    return true;
}

void os_fd_close(int fd) {
    if (fd < 0)
        return;
    int cancel_state;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
    pthread_mutex_lock(&fork_lock);
    if (!leave_later(fd)) {
        forget(fd); /* first: the number may be reused at once */
        close(fd);
    }
    pthread_mutex_unlock(&fork_lock);
    pthread_setcancelstate(cancel_state, NULL);
}

/* ---- Forks ---- */

void os_fd_keep(const int *fds, size_t count) {
    kept_count = count;
    memcpy(kept_fds, fds, count * sizeof fds[0]);
}

void os_fd_keep_none(void) {
    kept_count = 0;
}

void os_fd_fork_begins(void) {
    pthread_mutex_lock(&fork_lock);
    forks++;
    forks_begun++; /* who sees this sees that it is under way */
    pthread_mutex_unlock(&fork_lock);
}

uint32_t os_fd_forks_begun(void) {
    return forks_begun;
}

bool os_fd_fork_is_under_way(void) {
    return forks > 0;
}

static void close_bits(uint64_t bits, int first_fd) {
    for (; bits != 0; bits &= bits - 1)
        close(first_fd + __builtin_ctzll(bits));
}

static void close_leaving(fd_chunk *chunk, int first_fd) {
    for (int i = 0; i < CHUNK_WORDS; i++) {
        uint64_t bits = chunk->leaving[i];
        chunk->leaving[i] = 0;
        atomic_fetch_and(&chunk->words[i], ~bits);
        close_bits(bits, first_fd + i * BITS);
    }
}

void os_fd_fork_ended(void) {
    pthread_mutex_lock(&fork_lock);
    forks--;
    bool closes = forks == 0 && any_leaving;
    for (int i = 0; closes && i < CHUNKS; i++) {
        fd_chunk *chunk = atomic_load_explicit(&chunks[i], memory_order_acquire);
        if (chunk != NULL)
            close_leaving(chunk, i * CHUNK_FDS);
    }
    any_leaving &= !closes;
    pthread_mutex_unlock(&fork_lock);
}

static void close_inherited_chunk(fd_chunk *chunk, int first_fd) {
    memset(chunk->leaving, 0, sizeof chunk->leaving);
    for (int i = 0; i < CHUNK_WORDS; i++)
        close_bits(atomic_exchange(&chunk->words[i], 0), first_fd + i * BITS);
}

void os_fd_close_inherited(void) {
    fork_lock =
        (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER; /* any thread may have held it */
    forks = 0;
    any_leaving = false;
    for (size_t i = 0; i < kept_count; i++)
        forget(kept_fds[i]);
    kept_count = 0;
    for (int i = 0; i < CHUNKS; i++) {
        fd_chunk *chunk = atomic_load_explicit(&chunks[i], memory_order_acquire);
        if (chunk != NULL)
            close_inherited_chunk(chunk, i * CHUNK_FDS);
    }
}
