/* job.h - all inputs, harmless and hostile, as tasks of a pool. */
#ifndef DOCUMENTS_JOB_H
#define DOCUMENTS_JOB_H

#include "files.h"
#include "hostile.h"

#include <pebble.h>

typedef struct job_entry {
    const char *input;            /* a path, or the name of the hostile input */
    const hostile_input *hostile; /* NULL: a document */
    pebble_future *future;        /* NULL if not scheduled */
    pebble_queue *ended;          /* where it goes when it has ended */
    int64_t scheduled_ns;
    int64_t ended_ns;
} job_entry;

typedef struct job {
    job_entry *entries;
    size_t count;
    size_t scheduled; /* from the first on; not all if the pool was stopped */
    pebble_queue *ended;
    int64_t run_ns;       /* from the first schedule to the last end */
    int64_t documents_ns; /* to the last end of a document */
} job;

/* Makes a job of the documents, the hostile inputs spread among them. */
void job_init(job *all, const file_list *files);

/* Schedules every entry with this timeout, and waits until all have ended. Shows how far
 * it is if standard output is a terminal. Stop the pool to end it early. */
void job_run(job *all, pebble_pool *pool, int64_t timeout_ns);

/* To be called when the pool is gone. */
void job_fini(job *all);

#endif
