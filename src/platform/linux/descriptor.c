/* The set of descriptors that the engine holds: a two-level bitmap of atomic words, so that the
 * child of a fork can read it whatever the other threads were doing. Chunks are never freed. */
#include "platform/platform.h"

#include <pthread.h>
#include <unistd.h>

enum { BITS = 64, CHUNK_WORDS = 64, CHUNK_FDS = BITS * CHUNK_WORDS, CHUNKS = 1024 };

typedef struct fd_chunk {
    _Atomic uint64_t words[CHUNK_WORDS];
} fd_chunk;

static fd_chunk first_chunk; /* most programs never need another */
static _Atomic(fd_chunk *) chunks[CHUNKS] = {&first_chunk};

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

void os_fd_forget(int fd) {
    _Atomic uint64_t *word = word_of(fd, false);
    if (word != NULL)
        atomic_fetch_and(word, ~bit_of(fd));
}

void os_fd_close(int fd) {
    if (fd < 0)
        return;
    int cancel_state;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
    os_fd_forget(fd); /* first: the number may be reused at once */
    close(fd);
    pthread_setcancelstate(cancel_state, NULL);
}

static void close_word(_Atomic uint64_t *word, int first_fd) {
    for (uint64_t bits = atomic_exchange(word, 0); bits != 0; bits &= bits - 1)
        close(first_fd + __builtin_ctzll(bits));
}

void os_fd_close_inherited(void) {
    for (int i = 0; i < CHUNKS; i++) {
        fd_chunk *chunk = atomic_load_explicit(&chunks[i], memory_order_acquire);
        for (int j = 0; chunk != NULL && j < CHUNK_WORDS; j++)
            close_word(&chunk->words[j], i * CHUNK_FDS + j * BITS);
    }
}
