#include "process/pid_set.h"

#include <string.h>

#include "platform/platform.h"

void pid_set_fini(pid_set *set) {
    os_free(set->pids);
    *set = (pid_set){0};
}

/* Of the first number that is not less; most are added at the end, as the kernel hands them out. */
static size_t place_of(const pid_set *set, pid_t pid) {
    size_t low = 0, high = set->count;
    if (high > 0 && set->pids[high - 1] < pid)
        return high;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (set->pids[middle] < pid)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static bool is_at(const pid_set *set, size_t place, pid_t pid) {
    return place < set->count && set->pids[place] == pid;
}

bool pid_set_has(const pid_set *set, pid_t pid) {
    return is_at(set, place_of(set, pid), pid);
}

bool pid_set_add(pid_set *set, pid_t pid) {
    size_t place = place_of(set, pid);
    if (is_at(set, place, pid))
        return false;
    if (set->count == set->capacity) {
        size_t capacity = set->capacity > 0 ? set->capacity * 2 : 16;
        pid_t *pids = os_realloc(set->pids, capacity * sizeof *pids);
        if (pids == NULL)
            return false;
        set->pids = pids;
        set->capacity = capacity;
    }
    memmove(&set->pids[place + 1], &set->pids[place],
            (set->count - place) * sizeof *set->pids);
    set->pids[place] = pid;
    set->count++;
    return true;
}

void pid_set_remove(pid_set *set, pid_t pid) {
    size_t place = place_of(set, pid);
    if (!is_at(set, place, pid))
        return;
    set->count--;
    memmove(&set->pids[place], &set->pids[place + 1],
            (set->count - place) * sizeof *set->pids);
}
