/* Forks of the program that are not the engine's: what the child may still do with what it
 * inherited is nothing, and that has to be known without a system call. */
#ifndef PEBBLE_CORE_FORK_H
#define PEBBLE_CORE_FORK_H

#include <stdbool.h>
#include <stdint.h>

/* Counts the forks between the first process and this one. Objects note it when they are made;
 * one that differs belongs to an ancestor. */
extern uint32_t fork_epoch;

/* Starts watching forks. To be called before anything that must not survive one is made. Returns
 * 0 or an errno value. */
int fork_watch(void);

#endif
