/* Processes that were executed to serve a pool (forkserver and spawn): how they know. */
#ifndef PEBBLE_PROCESS_EXECUTED_H
#define PEBBLE_PROCESS_EXECUTED_H

/* Environment variables, taken out by pebble_worker_main(): the worker's setup; the zygote's. */
#define EXECUTED_WORKER "PEBBLE_INTERNAL_WORKER"
#define EXECUTED_ZYGOTE "PEBBLE_INTERNAL_ZYGOTE"

/* The number of the descriptor with the pool's worker_data. */
#define EXECUTED_DATA "PEBBLE_INTERNAL_DATA"

/* In the child of a fork: what it executes will inherit the data. -1: there are none. */
void executed_pass_data(int data_fd);

/* Adds a variable to the environment of what this process, the child of a fork, will execute. Not
 * by setenv(): a thread of the parent may have held its lock at the fork. */
void executed_set(const char *name, const char *value);

/* What a process ends with that was executed to serve a pool and would make one instead. */
#define EXECUTED_WITHOUT_WORKER_MAIN 113

/* Ends such a process: called before a pool is made. */
void executed_check(void);

#endif
