/* report.c - the table: input, outcome, time, worker. */
#include "report.h"

#include "check.h"
#include "clock.h"
#include "task.h"

#include <inttypes.h>
#include <string.h>

enum { INPUT_WIDTH = 40, OUTCOME_WIDTH = 56, SAMPLE = 5 };

static void print_heading(const char *title) {
    printf("\n%-*s  %-*s  %10s  %7s\n", INPUT_WIDTH, title, OUTCOME_WIDTH, "outcome",
           "time", "worker");
}

/* Copies text into a column: its end if it is a path, else its start; what is not ASCII
 * as question marks, since a column counts bytes. */
static void fit(char *column, int width, const char *text, bool is_path) {
    size_t size = strlen(text), room = (size_t)width;
    bool is_cut = size > room;
    const char *from = is_cut && is_path ? text + size - room : text;

    snprintf(column, room + 1, "%s", from);
    for (char *c = column; *c != '\0'; c++)
        if (*c < ' ' || *c > '~')
            *c = '?';
    if (is_cut)
        memcpy(is_path ? column : column + room - 2, "..", 2);
}

static void describe_failure(const pebble_failure *failure, char *text, size_t size) {
    if (failure->kind == PEBBLE_ERR_TASK_TIMEOUT)
        snprintf(text, size, "timeout: ran longer than %g s",
                 clock_seconds(failure->timeout_ns));
    else if (failure->kind == PEBBLE_ERR_TASK_FAILED)
        snprintf(text, size, "error %d: %s", failure->code, failure->message);
    else if (failure->kind == PEBBLE_ERR_TASK_EXPIRED && failure->signal != 0)
        snprintf(text, size, "died: signal %d (%s)", failure->signal,
                 strsignal(failure->signal));
    else if (failure->kind == PEBBLE_ERR_TASK_EXPIRED)
        snprintf(text, size, "died: exit code %d", failure->exit_code);
    else
        snprintf(text, size, "%s", pebble_error_text(failure->kind));
}

static void describe_result(const parse_result *result, char *text, size_t size) {
    const document_facts *facts = &result->facts;

    if (facts->macros > 0)
        snprintf(text, size,
                 "%" PRIu64 " sections, %" PRIu64 " macros, %" PRIu64 " words: %s",
                 facts->sections, facts->macros, facts->words, result->title);
    else
        snprintf(text, size, "%" PRIu64 " lines, %" PRIu64 " words: %s", facts->lines,
                 facts->words, result->title);
}

/* A task that succeeded knows its own time. Of one that failed only its end is known: its
 * time counts from its scheduling, with a mark, and holds its time in the queue. */
static void print_entry(const job_entry *entry) {
    outcome ended = future_outcome(entry->future);
    char input[INPUT_WIDTH + 1], column[OUTCOME_WIDTH + 1], text[2048];
    int64_t time_ns = entry->ended_ns - entry->scheduled_ns;
    const char *mark = "*";

    if (ended.result != NULL) {
        describe_result(ended.result, text, sizeof text);
        time_ns = ended.result->time_ns;
        mark = " ";
    } else {
        describe_failure(ended.failure, text, sizeof text);
    }
    fit(input, INPUT_WIDTH, entry->input, entry->hostile == NULL);
    fit(column, OUTCOME_WIDTH, text, false);
    printf("%-*s  %-*s  %7.1f ms%s %7d\n", INPUT_WIDTH, input, OUTCOME_WIDTH, column,
           clock_seconds(time_ns) * 1000, mark, (int)pebble_future_pid(entry->future));
}

static void print_backtrace(const pebble_failure *failure) {
    const char *line = failure == NULL ? NULL : failure->backtrace;

    while (line != NULL && *line != '\0') {
        size_t size = strcspn(line, "\n");
        printf("        %.*s\n", (int)size, line);
        line += size + (line[size] == '\n');
    }
}

static int64_t document_time_ns(const job_entry *entry) {
    outcome ended = future_outcome(entry->future);

    return ended.result != NULL ? ended.result->time_ns
                                : entry->ended_ns - entry->scheduled_ns;
}

static int slower_first(const void *a, const void *b) {
    int64_t time_a_ns = document_time_ns(*(const job_entry *const *)a);
    int64_t time_b_ns = document_time_ns(*(const job_entry *const *)b);

    return (time_a_ns < time_b_ns) - (time_a_ns > time_b_ns);
}

static void print_documents(const job *all, bool every_document) {
    const job_entry **documents = calloc(all->count, sizeof *documents);
    size_t count = 0, first;

    EXPECT(documents != NULL);
    for (size_t i = 0; i < all->count; i++)
        if (all->entries[i].hostile == NULL)
            documents[count++] = &all->entries[i];
    first = every_document || count < SAMPLE ? count : SAMPLE;

    print_heading(every_document ? "all documents" : "the first documents");
    for (size_t i = 0; i < first; i++)
        print_entry(documents[i]);
    if (!every_document) {
        qsort(documents, count, sizeof *documents, slower_first);
        print_heading("the slowest documents");
        for (size_t i = 0; i < first; i++)
            print_entry(documents[i]);
    }
    free(documents);
}

void report_print(const job *all, bool every_document) {
    print_documents(all, every_document);
    print_heading("the hostile inputs");
    for (size_t i = 0; i < all->count; i++) {
        if (all->entries[i].hostile == NULL)
            continue;
        print_entry(&all->entries[i]);
        print_backtrace(pebble_future_failure(all->entries[i].future));
    }
    printf("* since it was scheduled, its time in the queue included\n\n");
}
