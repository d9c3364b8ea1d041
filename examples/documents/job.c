/* job.c - all inputs, harmless and hostile, as tasks of a pool.
 *
 * Each future has a callback, which notes the time and puts the entry into a queue. So
 * the main thread gets the entries in the order in which they end, and sleeps in between.
 */
#include "job.h"

#include "check.h"
#include "clock.h"
#include "task.h"

#include <string.h>
#include <unistd.h>

void job_init(job *all, const file_list *files) {
    size_t hostile = 0, harmless = 0;

    *all = (job){.count = files->count + hostile_input_count};
    all->entries = calloc(all->count, sizeof *all->entries);
    EXPECT(all->entries != NULL);
    TRY(pebble_queue_new(0, &all->ended));

    for (size_t i = 0; i < all->count; i++) {
        job_entry *entry = &all->entries[i];
        if (hostile < hostile_input_count &&
            i >= (hostile + 1) * all->count / (hostile_input_count + 1)) {
            entry->hostile = &hostile_inputs[hostile++];
            entry->input = entry->hostile->name;
        } else if (harmless < files->count) {
            entry->input = files->paths[harmless++];
        }
        entry->ended = all->ended;
    }
    EXPECT(hostile == hostile_input_count && harmless == files->count);
}

static void entry_ended(pebble_future *future, void *context) {
    job_entry *entry = context;

    (void)future;
    entry->ended_ns = clock_now_ns();
    TRY(pebble_queue_put(entry->ended, entry, PEBBLE_FOREVER));
}

/* Returns false if the pool was stopped. */
static bool entry_schedule(job_entry *entry, pebble_pool *pool, int64_t timeout_ns) {
    pebble_function function = entry->hostile ? entry->hostile->function : parse_task;
    pebble_error error;

    entry->scheduled_ns = clock_now_ns();
    error = pebble_schedule(pool, function, entry->input, strlen(entry->input) + 1,
                            timeout_ns, &entry->future);
    if (error == PEBBLE_ERR_NOT_ACTIVE)
        return false;
    TRY(error);
    TRY(pebble_future_add_callback(entry->future, entry_ended, entry));
    return true;
}

static void show_progress(size_t ended, size_t failed, size_t count) {
    bool is_last = ended == count;

    if (is_last)
        printf("\r\033[K");
    else
        printf("\r%zu of %zu inputs done, %zu failed ", ended, count, failed);
    fflush(stdout);
}

void job_run(job *all, pebble_pool *pool, int64_t timeout_ns) {
    int64_t start_ns = clock_now_ns();
    bool is_terminal = isatty(STDOUT_FILENO);
    size_t failed = 0, failed_shown = 0, percent_shown = 0;

    while (all->scheduled < all->count &&
           entry_schedule(&all->entries[all->scheduled], pool, timeout_ns))
        all->scheduled++;

    for (size_t ended = 1; ended <= all->scheduled; ended++) {
        job_entry *entry;
        void *item;

        TRY(pebble_queue_get(all->ended, PEBBLE_FOREVER, &item));
        entry = item;
        if (pebble_future_failure(entry->future) != NULL)
            failed++;
        all->run_ns = entry->ended_ns - start_ns;
        if (entry->hostile == NULL)
            all->documents_ns = all->run_ns;
        if (is_terminal &&
            (ended * 100 / all->scheduled > percent_shown || failed > failed_shown)) {
            percent_shown = ended * 100 / all->scheduled;
            failed_shown = failed;
            show_progress(ended, failed, all->scheduled);
        }
    }
}

void job_fini(job *all) {
    for (size_t i = 0; i < all->count; i++)
        pebble_future_unref(all->entries[i].future);
    free(all->entries);
    pebble_queue_free(all->ended);
}
