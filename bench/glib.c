/* glib.c - GLib's GThreadPool. It has no futures: each task stores its result in its own
 * item, and the last one wakes the caller. */
#include "bench.h"

#include <glib.h>
#include <stdlib.h>

typedef struct work_item {
    long argument;
    long result;
} work_item;

typedef struct work_pool {
    GThreadPool *threads;
    work_item *items;
    gint left;
    GMutex lock; /* for done */
    GCond ended;
    gboolean done;
} work_pool;

static void perform(gpointer data, gpointer user_data) {
    work_item *item = data;
    work_pool *pool = user_data;
    item->result = item->argument;
    if (g_atomic_int_dec_and_test(&pool->left)) {
        g_mutex_lock(&pool->lock);
        pool->done = TRUE;
        g_cond_signal(&pool->ended);
        g_mutex_unlock(&pool->lock);
    }
}

static void burst(void *context, long count) {
    work_pool *pool = context;
    pool->done = FALSE;
    g_atomic_int_set(&pool->left, (gint)count);
    for (long i = 0; i < count; i++) {
        pool->items[i] = (work_item){i, -1};
        g_thread_pool_push(pool->threads, &pool->items[i], NULL);
    }
    g_mutex_lock(&pool->lock);
    while (!pool->done)
        g_cond_wait(&pool->ended, &pool->lock);
    g_mutex_unlock(&pool->lock);
    for (long i = 0; i < count; i++)
        if (pool->items[i].result != i)
            bench_fail("task %ld: result is %ld", i, pool->items[i].result);
}

void bench_glib(long argument) {
    work_pool pool = {0};
    g_mutex_init(&pool.lock);
    g_cond_init(&pool.ended);
    pool.items =
        bench_allocate((size_t)(argument > 2000 ? argument : 2000) * sizeof(work_item));
    pool.threads = g_thread_pool_new(perform, &pool, bench_worker_count, TRUE, NULL);
    if (!pool.threads)
        bench_fail("g_thread_pool_new failed");
    bench_bursts(burst, &pool, argument);
    g_thread_pool_free(pool.threads, FALSE, TRUE);
    free(pool.items);
}
