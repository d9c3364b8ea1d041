/* task.c - what the workers do: parse a document, or answer a roll call. */
#include "task.h"

#include "clock.h"

#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

/* ---- Parsing ---- */

int parse_task(pebble_task *task, const void *input, size_t input_size) {
    int64_t start_ns = clock_now_ns();
    parse_result result;
    document page;
    int code = document_parse(input, &page);

    (void)input_size;
    if (code != 0)
        return pebble_task_fail(task, code, "%s", page.error);
    result.facts = page.facts;
    result.time_ns = clock_now_ns() - start_ns;
    if (pebble_task_write(task, &result, sizeof result) != PEBBLE_OK ||
        pebble_task_write(task, page.title, page.facts.title_size + 1) != PEBBLE_OK)
        return 1;
    return 0;
}

outcome future_outcome(pebble_future *future) {
    outcome ended = {NULL, NULL};
    const void *data;

    if (pebble_future_result(future, 0, &data, NULL) == PEBBLE_OK)
        ended.result = data;
    else
        ended.failure = pebble_future_failure(future);
    return ended;
}

static bool facts_equal(const document_facts *facts, const char *title,
                        const document_facts *other_facts, const char *other_title) {
    return memcmp(facts, other_facts, sizeof *facts) == 0 &&
           strcmp(title, other_title) == 0;
}

bool outcome_equal(outcome a, outcome b) {
    if (a.result != NULL && b.result != NULL)
        return facts_equal(&a.result->facts, a.result->title, &b.result->facts,
                           b.result->title);
    return a.failure != NULL && b.failure != NULL && a.failure->kind == b.failure->kind &&
           a.failure->code == b.failure->code &&
           strcmp(a.failure->message, b.failure->message) == 0;
}

bool outcome_is(outcome parsed, int code, const document *page) {
    if (code == 0)
        return parsed.result != NULL &&
               facts_equal(&parsed.result->facts, parsed.result->title, &page->facts,
                           page->title);
    return parsed.failure != NULL && parsed.failure->kind == PEBBLE_ERR_TASK_FAILED &&
           parsed.failure->code == code &&
           strcmp(parsed.failure->message, page->error) == 0;
}

/* ---- Roll call ---- */

static pthread_barrier_t *roll_call; /* in memory shared with the workers */

bool roll_call_prepare(int workers) {
    pthread_barrierattr_t shared;
    void *memory = mmap(NULL, sizeof *roll_call, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        return false;
    roll_call = memory;
    pthread_barrierattr_init(&shared);
    pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
    return pthread_barrier_init(roll_call, &shared, (unsigned)workers) == 0;
}

int roll_call_task(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    pthread_barrier_wait(roll_call);
    return 0;
}
