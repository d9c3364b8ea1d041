/* Functions across processes: what to call a function so that a worker finds it.
 *
 * In a worker that was forked from the program, functions that the program had loaded by then are
 * at the same addresses. Everywhere else, and for what was loaded later, a function goes by name:
 * either the one it was registered under, or its module's file and its offset in it.
 */
#ifndef PEBBLE_PROCESS_FUNCTION_H
#define PEBBLE_PROCESS_FUNCTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pebble.h"

/* How to send a function; kept for the life of its table. */
typedef struct function_entry {
    struct function_entry *next;
    pebble_function function;
    size_t name_size; /* 0: by address */
    char name[];
} function_entry;

enum { FUNCTION_BUCKETS = 64 };

/* The functions that a pool has met. Entries are added by anyone and never removed. */
typedef struct function_table {
    bool by_name; /* workers are executed: no address holds */
    /* The modules that were loaded when the zygote was forked, as counted by the loader. */
    _Atomic unsigned long long modules_loaded;
    _Atomic(function_entry *) buckets[FUNCTION_BUCKETS];
} function_table;

void function_table_fini(function_table *table);

/* To be called just before the zygote is forked. */
void function_table_note_fork(function_table *table);

/* The entry of a function, if the table has met it. */
const function_entry *function_table_find(const function_table *table,
                                          pebble_function function);

/* Has the table meet a function, if it has not. Takes the loader's lock at the first time: not to
 * be called with a lock held. ENOMEM; ENOENT: it is in no module and has no name. */
int function_table_meet(function_table *table, pebble_function function);

/* In a worker: the function of an address, or of a name if there is one. False: problem tells. */
bool function_find(uint64_t address, const char *name, size_t name_size,
                   pebble_function *function, char *problem, size_t problem_size);

#endif
