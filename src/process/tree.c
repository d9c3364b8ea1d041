#include "process/tree.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "platform/platform.h"

enum {
    PATH_SIZE = 64,
    DEPTH_MAX = 4096,  /* of the way up from a process to its root */
    ROUNDS_MAX = 1000, /* of killing what keeps forking */
};

void pid_list_fini(pid_list *list) {
    os_free(list->pids);
    *list = (pid_list){0};
}

bool pid_list_has(const pid_list *list, pid_t pid) {
    for (size_t i = 0; i < list->count; i++) {
        if (list->pids[i] == pid)
            return true;
    }
    return false;
}

void pid_list_add(pid_list *list, pid_t pid) {
    if (list->count == list->capacity) {
        size_t capacity = list->capacity > 0 ? list->capacity * 2 : 16;
        pid_t *pids = os_realloc(list->pids, capacity * sizeof *pids);
        if (pids == NULL)
            return;
        list->pids = pids;
        list->capacity = capacity;
    }
    list->pids[list->count++] = pid;
}

void pid_list_remove(pid_list *list, pid_t pid) {
    size_t kept = 0;
    for (size_t i = 0; i < list->count; i++) {
        if (list->pids[i] != pid)
            list->pids[kept++] = list->pids[i];
    }
    list->count = kept;
}

/* ---- Reading /proc ---- */

/* The parent of a process, 0 if it has none or has been reaped. */
static pid_t parent_of(pid_t pid) {
    char path[PATH_SIZE], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t size = read(fd, text, sizeof text - 1);
    close(fd);
    text[size > 0 ? size : 0] = '\0';
    char *name_end = strrchr(text, ')'); /* the name may hold anything, also ')' */
    char state;
    int parent;
    return name_end != NULL && sscanf(name_end + 1, " %c %d", &state, &parent) == 2
               ? parent
               : 0;
}

/* Calls visit for each number that names an entry of a directory. */
static bool each_number(const char *path, void (*visit)(pid_t, void *), void *context) {
    DIR *directory = opendir(path);
    if (directory == NULL)
        return false;
    struct dirent *entry;
    while ((entry = readdir(directory)) != NULL) {
        if (isdigit((unsigned char)entry->d_name[0]))
            visit((pid_t)atoi(entry->d_name), context);
    }
    closedir(directory);
    return true;
}

typedef struct child_search {
    pid_t parent;
    pid_list *found;
    bool listed; /* the kernel keeps lists of children */
} child_search;

/* Adds the children of one thread, as the kernel lists them. */
static void add_of_thread(pid_t thread, void *context) {
    child_search *search = context;
    char path[PATH_SIZE];
    int child;
    snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)search->parent,
             (int)thread);
    FILE *file = fopen(path, "re");
    search->listed |= file != NULL;
    while (file != NULL && fscanf(file, "%d", &child) == 1)
        pid_list_add(search->found, child);
    if (file != NULL)
        fclose(file);
}

static void add_if_child(pid_t pid, void *context) {
    child_search *search = context;
    if (parent_of(pid) == search->parent)
        pid_list_add(search->found, pid);
}

void tree_children(pid_t pid, pid_list *children) {
    char path[PATH_SIZE];
    child_search search = {.parent = pid, .found = children};
    snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    bool readable = each_number(path, add_of_thread, &search);
    if (readable && !search.listed) /* no CONFIG_PROC_CHILDREN: look at every process */
        each_number("/proc", add_if_child, &search);
}

void tree_descendants(pid_t pid, pid_list *descendants) {
    size_t next = descendants->count;
    tree_children(pid, descendants);
    for (; next < descendants->count; next++)
        tree_children(descendants->pids[next], descendants);
}

/* ---- Signalling ---- */

static bool descends_from(pid_t pid, pid_t root) {
    for (int depth = 0; depth < DEPTH_MAX && pid > 1; depth++) {
        if (pid == root)
            return true;
        pid = parent_of(pid);
    }
    return false;
}

void tree_signal(pid_t pid, pid_t root, int signal) {
    int fd = -1;
    if (os_process_open(pid, &fd) != 0) {
        /* No descriptors left, or it has gone. A number that still descends from root is not a
         * stranger's yet. */
        if (descends_from(pid, root))
            kill(pid, signal);
        return;
    }
    if (descends_from(pid, root))
        os_process_signal(fd, signal);
    os_fd_close(fd);
}

bool tree_kill(pid_t pid) {
    /* A stopped process forks no more, nor does one with a SIGKILL on its way: when a round finds
     * nobody new, everybody has one. */
    pid_list killed = {0};
    bool found_new = true;
    kill(pid, SIGSTOP); /* unreaped: the number is its own */
    for (int round = 0; found_new && round < ROUNDS_MAX; round++) {
        pid_list tree = {0};
        tree_descendants(pid, &tree);
        found_new = false;
        for (size_t i = 0; i < tree.count; i++) {
            if (pid_list_has(&killed, tree.pids[i]))
                continue;
            found_new = true;
            pid_list_add(&killed, tree.pids[i]);
            tree_signal(tree.pids[i], pid, SIGKILL);
        }
        pid_list_fini(&tree);
    }
    pid_list_fini(&killed);
    return kill(pid, SIGKILL) == 0 || errno != EPERM;
}
