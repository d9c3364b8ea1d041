#include "process/function.h"

#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "platform/platform.h"

/* Names on the way: 'r' and the registered name, or 'm', the offset in hexadecimal, a blank and
 * the module's file, which is empty for the program itself. */
enum { NAME_MAX_SIZE = 4096 + 32, REGISTERED_MAX = 255 };

/* ---- Registered functions ---- */

typedef struct registration {
    struct registration *next;
    pebble_function function;
    char name[];
} registration;

/* Grows at its beginning by compare-and-swap and never shrinks. Not with a lock: a fork might leave
 * that held in a zygote or worker. */
static _Atomic(registration *) registered;

static const registration *find_in(const registration *each, const char *name,
                                   pebble_function function) {
    while (each != NULL &&
           (name != NULL ? strcmp(each->name, name) != 0 : each->function != function))
        each = each->next;
    return each;
}

static const registration *find_registered(const char *name, pebble_function function) {
    return find_in(atomic_load_explicit(&registered, memory_order_acquire), name,
                   function);
}

/* Adds it, unless there is one with its name: then returns that. */
static const registration *add_registration(registration *made) {
    made->next = atomic_load_explicit(&registered, memory_order_acquire);
    do {
        const registration *known = find_in(made->next, made->name, NULL);
        if (known != NULL)
            return known;
    } while (!atomic_compare_exchange_weak_explicit(
        &registered, &made->next, made, memory_order_acq_rel, memory_order_acquire));
    return made;
}

pebble_error pebble_register_function(const char *name, pebble_function function) {
    static const char self[] = "pebble_register_function";
    if (name == NULL || *name == '\0' || strlen(name) > REGISTERED_MAX)
        return error_set(PEBBLE_ERR_INVALID, "%s: name is NULL, empty or over %d bytes",
                         self, REGISTERED_MAX);
    if (function == NULL)
        return error_set(PEBBLE_ERR_INVALID, "%s: function is NULL", self);
    registration *made = os_alloc(sizeof *made + strlen(name) + 1);
    if (made == NULL)
        return error_set_system(ENOMEM, self);
    made->function = function;
    strcpy(made->name, name);
    const registration *known = add_registration(made);
    if (known != made)
        os_free(made);
    return known->function == function
               ? PEBBLE_OK
               : error_set(PEBBLE_ERR_INVALID, "%s: name '%s' is another function's",
                           self, name);
}

/* ---- Modules ---- */

typedef struct module_search {
    uintptr_t address; /* in: to find the module that holds it, or 0 */
    const char *path;  /* in: to find the module with this file; out */
    uintptr_t base;    /* out */
    bool found;
    unsigned long long loaded; /* out: how many the loader has loaded so far */
} module_search;

static bool holds(const struct dl_phdr_info *info, uintptr_t address) {
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
        if (segment->p_type == PT_LOAD && address - info->dlpi_addr >= segment->p_vaddr &&
            address - info->dlpi_addr < segment->p_vaddr + segment->p_memsz)
            return true;
    }
    return false;
}

static int visit_module(struct dl_phdr_info *info, size_t size, void *context) {
    module_search *search = context;
    (void)size;
    search->loaded = info->dlpi_adds;
    if (search->address != 0
            ? !holds(info, search->address)
            : search->path == NULL || strcmp(info->dlpi_name, search->path) != 0)
        return 0;
    search->path = info->dlpi_name;
    search->base = info->dlpi_addr;
    search->found = true;
    return 1;
}

static unsigned long long modules_loaded(void) {
    module_search search = {0};
    dl_iterate_phdr(visit_module, &search);
    return search.loaded;
}

/* ---- The program's side ---- */

void function_table_fini(function_table *table) {
    for (int i = 0; i < FUNCTION_BUCKETS; i++) {
        for (function_entry *entry = table->buckets[i]; entry != NULL;) {
            function_entry *next = entry->next;
            os_free(entry);
            entry = next;
        }
    }
}

void function_table_note_fork(function_table *table) {
    atomic_store(&table->modules_loaded, modules_loaded());
}

/* Writes a function's name; its size with the ending zero, 0 if it has none. */
static size_t name_function(pebble_function function, char *name) {
    const registration *known = find_registered(NULL, function);
    if (known != NULL)
        return (size_t)snprintf(name, NAME_MAX_SIZE, "r%s", known->name) + 1;
    module_search search = {.address = (uintptr_t)function};
    dl_iterate_phdr(visit_module, &search);
    if (!search.found)
        return 0;
    int size = snprintf(name, NAME_MAX_SIZE, "m%zx %s",
                        (size_t)(search.address - search.base), search.path);
    return size < NAME_MAX_SIZE ? (size_t)size + 1 : 0;
}

static int make_entry(function_table *table, pebble_function function,
                      function_entry **entry) {
    char name[NAME_MAX_SIZE];
    size_t name_size = 0;
    if (table->by_name || modules_loaded() != atomic_load(&table->modules_loaded)) {
        name_size = name_function(function, name);
        if (name_size == 0 && table->by_name)
            return ENOENT;
    }
    *entry = os_alloc(sizeof **entry + name_size);
    if (*entry == NULL)
        return ENOMEM;
    (*entry)->function = function;
    (*entry)->name_size = name_size;
    memcpy((*entry)->name, name, name_size);
    return 0;
}

static size_t bucket_of(pebble_function function) {
    return ((uintptr_t)function >> 4) % FUNCTION_BUCKETS;
}

const function_entry *function_table_find(const function_table *table,
                                          pebble_function function) {
    const function_entry *entry =
        atomic_load_explicit(&table->buckets[bucket_of(function)], memory_order_acquire);
    while (entry != NULL && entry->function != function)
        entry = entry->next;
    return entry;
}

int function_table_meet(function_table *table, pebble_function function) {
    function_entry *made;
    if (function_table_find(table, function) != NULL)
        return 0;
    int error = make_entry(table, function, &made);
    if (error != 0)
        return error;
    _Atomic(function_entry *) *bucket = &table->buckets[bucket_of(function)];
    made->next = atomic_load_explicit(bucket, memory_order_acquire);
    while (!atomic_compare_exchange_weak_explicit(
        bucket, &made->next, made, memory_order_acq_rel, memory_order_acquire))
        ; /* two entries for one function do no harm */
    return 0;
}

/* ---- The worker's side ---- */

static bool find_in_module(const char *name, pebble_function *function) {
    char *path;
    uintptr_t offset = (uintptr_t)strtoull(name, &path, 16);
    if (*path++ != ' ')
        return false;
    module_search search = {.path = path};
    dl_iterate_phdr(visit_module, &search);
    if (!search.found && dlopen(path, RTLD_NOW | RTLD_LOCAL) != NULL) {
        search = (module_search){.path = path};
        dl_iterate_phdr(visit_module, &search);
    }
    *function =
        (pebble_function)(search.base + offset); /* NOLINT: an address from its module */
    return search.found;
}

static bool find_by_name(const char *name, pebble_function *function) {
    /* Streams of tasks call the same function: the last one found is kept. */
    static char last_name[NAME_MAX_SIZE];
    static pebble_function last_function;
    if (last_function != NULL && strcmp(name, last_name) == 0) {
        *function = last_function;
        return true;
    }
    const registration *known = *name == 'r' ? find_registered(name + 1, NULL) : NULL;
    if (known != NULL)
        *function = known->function;
    else if (*name != 'm' || !find_in_module(name + 1, function))
        return false;
    snprintf(last_name, sizeof last_name, "%s", name);
    last_function = *function;
    return true;
}

bool function_find(uint64_t address, const char *name, size_t name_size,
                   pebble_function *function, char *problem, size_t problem_size) {
    if (name == NULL) {
        *function = (pebble_function)(uintptr_t)address;
        return true;
    }
    if (memchr(name, '\0', name_size) != NULL && find_by_name(name, function))
        return true;
    snprintf(problem, problem_size, "the worker does not find the function '%.*s'",
             (int)(name_size < 200 ? name_size : 200), name);
    return false;
}
