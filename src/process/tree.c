/* A walk finds all processes of a tree and signals them.
 *
 * SIGTERM: first it lists all, then it signals all, so that nobody is missed whose parent has ended for
 * the signal. What is forked meanwhile is not found; SIGKILL finds it.
 *
 * SIGKILL: it signals and lists each in one visit, in that order, since a process with a SIGKILL on its
 * way forks no more. If it has died by then, its children have become the root's, which is looked at
 * again until nothing new is found. (Or those of a subreaper among the descendants, visited already. They
 * become the zygote's when that dies, which looks for such, see zygote.c; as it does for what a root leaves
 * that is exiting already, and for a child of the root whose fork was under way when that was stopped.)
 *
 * Numbers are reused. A number on a list is taken for the process that was listed as long as what has
 * it started no later than that: to pass to another within two ticks of the clock, all numbers would have
 * to be handed out in them. That is asked after a pidfd has pinned the process, the signal goes through
 * the pidfd, and its children count only if it is unreaped after they have been listed.
 */
#include "process/tree.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "platform/platform.h"

enum {
    EXITING = 4, /* PF_EXITING of the kernel's <linux/sched.h> */
    PATH_SIZE = 64,
    VISITS = 16,     /* a step */
    LOOKS_MAX = 1000 /* at a root that starts processes although it was stopped */
};

/* ---- Reading /proc ---- */

typedef struct process_facts {
    pid_t parent;
    unsigned flags;
    long threads;
    int64_t start_ticks; /* since the system's start */
} process_facts;

static int64_t now_ticks(void) {
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    int64_t per_second = sysconf(_SC_CLK_TCK);
    return now.tv_sec * per_second + now.tv_nsec / (1000000000 / per_second);
}

/* False if it has been reaped. */
static bool read_facts(pid_t pid, process_facts *facts) {
    char path[PATH_SIZE], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = os_attempt(OS_FAULT_FD, EMFILE, -1, open(path, O_RDONLY | O_CLOEXEC));
    if (fd < 0)
        return false;
    ssize_t size = read(fd, text, sizeof text - 1);
    close(fd);
    text[size > 0 ? size : 0] = '\0';
    char *name_end = strrchr(text, ')'); /* the name may hold anything, also ')' */
    long long start_ticks;
    /* proc(5): state, parent, 4 others, flags, 10 others, threads, one other, start */
    if (name_end == NULL ||
        sscanf(name_end + 1,
               " %*c %d %*s %*s %*s %*s %u %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %ld "
               "%*s %lld",
               &facts->parent, &facts->flags, &facts->threads, &start_ticks) != 4)
        return false;
    facts->start_ticks = start_ticks;
    return true;
}

bool tree_is_exiting(pid_t pid, bool *exiting) {
    process_facts facts;
    if (!read_facts(pid, &facts))
        return false;
    *exiting = (facts.flags & EXITING) != 0;
    return true;
}

/* Calls visit for each number that names an entry of a directory. */
static bool each_number(const char *path, void (*visit)(pid_t, void *), void *context) {
    DIR *directory = os_attempt(OS_FAULT_FD, EMFILE, NULL, opendir(path));
    if (directory == NULL)
        return false;
    const struct dirent *entry;
    while (errno = 0, (entry = readdir(directory)) != NULL) {
        if (isdigit((unsigned char)entry->d_name[0]))
            visit((pid_t)atoi(entry->d_name), context);
    }
    int error = errno;
    closedir(directory);
    errno = error;
    return error == 0;
}

typedef struct child_search {
    pid_t parent;
    pid_set *found;
    bool listed;
    bool absent; /* no such list: the kernel keeps none, or the thread has ended */
    bool failed; /* out of memory, here or in the kernel */
} child_search;

static void add_found(child_search *search, pid_t pid) {
    search->failed |= !pid_set_add(search->found, pid) && !pid_set_has(search->found, pid);
}

/* Adds the children of one thread, as the kernel lists them. */
static void add_of_thread(pid_t thread, void *context) {
    child_search *search = context;
    char path[PATH_SIZE];
    int child;
    snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)search->parent,
             (int)thread);
    FILE *file = os_attempt(OS_FAULT_FD, EMFILE, NULL, fopen(path, "re"));
    search->listed |= file != NULL;
    search->absent |= file == NULL && errno == ENOENT;
    while (file != NULL && fscanf(file, "%d", &child) == 1)
        add_found(search, child);
    if (file == NULL)
        return;
    search->failed |= ferror(file) && errno != ESRCH;
    fclose(file);
}

static void add_if_child(pid_t pid, void *context) {
    child_search *search = context;
    process_facts facts;
    errno = 0;
    if (!read_facts(pid, &facts))
        search->failed |= errno == EMFILE || errno == ENFILE || errno == ENOMEM;
    else if (facts.parent == search->parent)
        add_found(search, pid);
}

bool tree_children(pid_t pid, pid_set *children) {
    char path[PATH_SIZE];
    child_search search = {.parent = pid, .found = children};
    snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    if (!each_number(path, add_of_thread, &search))
        return errno == ENOENT || errno == ESRCH; /* it has been reaped: no children */
    if (search.listed)
        return !search.failed;
    /* no CONFIG_PROC_CHILDREN: look at every process */
    return search.absent && each_number("/proc", add_if_child, &search) && !search.failed;
}

/* As tree_children(), faster for a process with a single thread. */
static void list_children(pid_t pid, long threads, pid_set *children) {
    child_search search = {.parent = pid, .found = children};
    if (threads == 1)
        add_of_thread(pid, &search);
    if (!search.listed)
        tree_children(pid, children);
}

/* ---- Visiting ---- */

/* The queue of a walk that only lists is read again. */
static bool has_room(tree_walk *walk) {
    if (walk->queue_next == walk->queue_count && !walk->lists)
        walk->queue_next = walk->queue_count = 0;
    if (walk->queue_count < walk->queue_capacity)
        return true;
    size_t capacity = walk->queue_capacity > 0 ? walk->queue_capacity * 2 : 16;
    tree_member *queue = os_realloc(walk->queue, capacity * sizeof *queue);
    if (queue == NULL)
        return false;
    walk->queue = queue;
    walk->queue_capacity = capacity;
    return true;
}

static void add(tree_walk *walk, pid_t pid, int64_t seen_ticks) {
    if (has_room(walk) && pid_set_add(&walk->members, pid))
        walk->queue[walk->queue_count++] =
            (tree_member){.pid = pid, .seen_ticks = seen_ticks};
}

void tree_walk_add(tree_walk *walk, pid_t pid) {
    add(walk, pid, now_ticks());
}

bool tree_walk_found(const tree_walk *walk, pid_t pid) {
    process_facts facts;
    return pid_set_has(&walk->members, pid) &&
           (!read_facts(pid, &facts) || facts.start_ticks <= walk->seen_ticks);
}

/* Its error is what became of the signal; ESRCH: it has been reaped. Without a pidfd, since no
 * descriptors are left, by the number. */
static int send_to(pid_t pid, int fd, int signal) {
    if (fd >= 0)
        return os_process_signal(fd, signal);
    return kill(pid, signal) == 0 ? 0 : errno;
}

static void add_children(tree_walk *walk, pid_t pid, int fd, long threads) {
    pid_set children = {0};
    int64_t before_ticks = now_ticks();
    list_children(pid, threads, &children);
    int64_t seen_ticks = now_ticks();
    if (seen_ticks > before_ticks + 1) /* too long to vouch for the numbers meanwhile */
        seen_ticks = before_ticks;
    walk->seen_ticks = seen_ticks;
    if (send_to(pid, fd, 0) != ESRCH) {
        for (size_t i = 0; i < children.count; i++)
            add(walk, children.pids[i], seen_ticks);
    }
    pid_set_fini(&children);
}

static void visit_pinned(tree_walk *walk, pid_t pid, int fd, long threads) {
    if (!walk->lists)
        send_to(pid, fd, walk->signal);
    if (walk->lists || walk->signal == SIGKILL)
        add_children(walk, pid, fd, threads);
    else
        send_to(pid, fd, SIGCONT); /* a stopped process takes its signal when it goes on */
}

static void visit(tree_walk *walk, tree_member member) {
    process_facts facts;
    int fd = -1;
    os_process_open(member.pid, &fd);
    bool known = read_facts(member.pid, &facts);
    if (!known && fd >= 0) { /* that may have been the last descriptor */
        os_fd_close(fd);
        fd = -1;
        known = read_facts(member.pid, &facts);
    }
    if (known && facts.start_ticks <= member.seen_ticks)
        visit_pinned(walk, member.pid, fd, facts.threads);
    else
        pid_set_remove(&walk->members,
                       member.pid); /* another process, which may be found anew */
    if (fd >= 0)
        os_fd_close(fd);
}

/* ---- The root ---- */

/* When a look at a stopped root finds nobody new, everybody has a SIGKILL. It is stopped no sooner than
 * that, lest it stay so if we are killed ourselves; and at each look, as somebody may let it go on. */
static void look_at_root(tree_walk *walk) {
    bool stopped = walk->looks++ > 0;
    if (stopped)
        send_to(walk->root, walk->root_fd, SIGSTOP);
    add_children(walk, walk->root, walk->root_fd, 0);
    bool any = walk->queue_next < walk->queue_count;
    if (!stopped || (any && walk->looks < LOOKS_MAX))
        return;
    send_to(walk->root, walk->root_fd, SIGKILL);
    walk->root = 0;
}

/* All are listed: now they are signalled. */
static void begin_to_signal(tree_walk *walk) {
    walk->lists = false;
    walk->queue_next = 0;
    if (walk->root == 0)
        return;
    send_to(walk->root, walk->root_fd, walk->signal);
    send_to(walk->root, walk->root_fd, SIGCONT);
    walk->root = 0;
}

void tree_walk_start(tree_walk *walk, pid_t root, int root_fd, int signal) {
    tree_walk_fini(walk);
    walk->signal = signal;
    walk->root_fd = root_fd;
    walk->lists = signal != SIGKILL;
    if (send_to(root, root_fd, 0) == 0) /* else it is not ours to end */
        walk->root = root;
    if (walk->lists && walk->root != 0)
        add_children(walk, root, root_fd, 0);
}

void tree_walk_lose_root(tree_walk *walk) {
    walk->root = 0;
}

/* ---- The walk ---- */

bool tree_walk_done(const tree_walk *walk) {
    return walk->queue_next == walk->queue_count && walk->root == 0 && !walk->lists;
}

void tree_walk_step(tree_walk *walk) {
    for (int i = 0; i < VISITS && !tree_walk_done(walk); i++) {
        if (walk->queue_next < walk->queue_count)
            visit(walk, walk->queue[walk->queue_next++]);
        else if (walk->lists)
            begin_to_signal(walk);
        else
            look_at_root(walk);
    }
}

void tree_walk_fini(tree_walk *walk) {
    pid_set_fini(&walk->members);
    os_free(walk->queue);
    *walk = (tree_walk){.signal = walk->signal};
}

void tree_kill(pid_t root, int root_fd) {
    tree_walk walk = {0};
    tree_walk_start(&walk, root, root_fd, SIGKILL);
    while (!tree_walk_done(&walk))
        tree_walk_step(&walk);
    tree_walk_fini(&walk);
}
