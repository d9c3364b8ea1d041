/* Tasks that attack the pool that runs them: they overwrite their own channel, in whole or one
 * word of it. What must hold: what is plainly damage is found when the program looks, and the task
 * ends for it; every other ends in time, as it can; no task of another worker is touched; the pool
 * goes on.
 *
 * Damage comes from numbered seeds; one that fails is shown, and is run alone by
 * PEBBLE_TEST_SEED=N. */
#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "channel/layout.h"
#include "process/crash.h"

enum { WORKERS = 2, HONEST = 6 };

#define SOON_NS                                                                          \
    (PEBBLE_SECONDS(1) * (WITH_THREAD_SANITIZER || WITH_ADDRESS_SANITIZER ? 3 : 1))

#define GRACE_NS PEBBLE_MILLISECONDS(20)
#define TASK_TIMEOUT_NS (PEBBLE_MILLISECONDS(60) * (WITH_THREAD_SANITIZER ? 5 : 1))

/* ---- Tasks ---- */

static uint32_t next_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (uint32_t)(*state * UINT64_C(2685821657736338717) >> 32);
}

/* The task's own channel, by the mapping's name; NULL if it cannot be found. */
static void *find_mapping(const char *name, char *permissions) {
    char line[512], access[8];
    unsigned long start;
    void *found = NULL;
    FILE *maps = fopen("/proc/self/maps", "re");
    while (maps != NULL && fgets(line, sizeof line, maps) != NULL) {
        if (strstr(line, name) != NULL &&
            sscanf(line, "%lx-%*x %7s", &start, access) == 2) {
            found = (void *)start;
            if (permissions != NULL)
                memcpy(permissions, access, 5);
        }
    }
    if (maps != NULL)
        fclose(maps);
    return found;
}

static void fill_random(void *memory, size_t size, uint64_t *state) {
    unsigned char *bytes = memory;
    for (size_t i = 0; i < size; i++)
        bytes[i] = (unsigned char)next_random(state);
}

/* Some bytes here and there. */
static void sprinkle(void *memory, size_t size, uint64_t *state) {
    unsigned count = 1 + next_random(state) % 64;
    for (unsigned i = 0; i < count; i++)
        ((unsigned char *)memory)[next_random(state) % size] =
            (unsigned char)next_random(state);
}

typedef enum damage {
    DAMAGE_ALL,
    DAMAGE_SPRINKLED,
    DAMAGE_RING,
    DAMAGE_TAIL,
    DAMAGE_TAIL_A_LITTLE,
    DAMAGE_TAIL_BACK,
    DAMAGE_SLOTS,
    DAMAGE_OWN_SLOT,
    DAMAGE_ENDED,
    DAMAGE_SLEEP,
    DAMAGE_TASK_HEAD,
    DAMAGE_RING_COUNT,
    DAMAGE_CRASH,
    DAMAGE_FALSE_END,
    DAMAGE_KINDS
} damage;

/* What the program finds out as soon as it looks at the channel. What it does not find out is no damage to
 * it: the worker writes over it, or it is a word that only says when to sleep or to look. */
typedef enum finding { NEVER, SOMETIMES, ALWAYS } finding;

static const struct {
    const char *name;
    finding found;
} kinds[DAMAGE_KINDS] = {
    [DAMAGE_ALL] = {"all", ALWAYS},
    [DAMAGE_SPRINKLED] = {"sprinkled", SOMETIMES}, /* when it hits the tail */
    [DAMAGE_RING] = {"ring", SOMETIMES},           /* when there is more to read, too */
    [DAMAGE_TAIL] = {"tail", ALWAYS},
    [DAMAGE_TAIL_A_LITTLE] = {"tail a little", ALWAYS},
    [DAMAGE_TAIL_BACK] = {"tail back", ALWAYS},
    [DAMAGE_SLOTS] = {"slots", NEVER},
    [DAMAGE_OWN_SLOT] = {"own slot", NEVER},
    [DAMAGE_ENDED] = {"ended", NEVER},
    [DAMAGE_SLEEP] = {"sleep", NEVER},
    [DAMAGE_TASK_HEAD] = {"task head", NEVER},
    [DAMAGE_RING_COUNT] = {"ring count", NEVER},
    [DAMAGE_CRASH] = {"crash", NEVER},
    [DAMAGE_FALSE_END] = {"false end", SOMETIMES}, /* if another's */
};

/* An end of a task that the worker was not asked to tell: another's, or its own twice. */
static void write_false_end(channel_up *up, uint64_t *state) {
    uint32_t tail = atomic_load(&up->result_tail);
    result_record record = {.kind = (uint16_t)(RECORD_DATA + next_random(state) % 3),
                            .code = 1,
                            .size = next_random(state) % 40,
                            .sequence = next_random(state) % 6};
    memcpy(up->ring + (tail & (CHANNEL_RING - 1)), &record, sizeof record);
    atomic_store(&up->result_tail, tail + channel_padded(sizeof record + record.size));
}

/* Says of every task that it waits, of the running one too. */
static void deny_start(channel_up *up) {
    for (int i = 0; i < CHANNEL_SLOTS; i++) {
        uint64_t word = atomic_load(&up->slots[i].word);
        if ((word & SLOT_STATE) == SLOT_RUNNING)
            atomic_store(&up->slots[i].word, (word & ~(uint64_t)SLOT_STATE) | SLOT_QUEUED);
    }
}

static void do_damage(channel_up *up, damage kind, uint64_t *state) {
    switch (kind) {
    case DAMAGE_ALL:
        fill_random(up, sizeof *up, state);
        break;
    case DAMAGE_SPRINKLED:
        sprinkle(up, sizeof *up, state);
        sprinkle(up, offsetof(channel_up, slots), state);
        break;
    case DAMAGE_RING:
        fill_random(up->ring, sizeof up->ring, state);
        atomic_fetch_add(&up->result_tail, next_random(state) % 4 * CHANNEL_LINE);
        break;
    case DAMAGE_TAIL:
        atomic_store(&up->result_tail, next_random(state));
        break;
    case DAMAGE_TAIL_A_LITTLE:
        atomic_fetch_add(&up->result_tail, 1 + next_random(state) % 200);
        break;
    case DAMAGE_TAIL_BACK:
        atomic_fetch_sub(&up->result_tail, 1 + next_random(state) % 200);
        break;
    case DAMAGE_SLOTS:
        fill_random(up->slots, sizeof up->slots, state);
        break;
    case DAMAGE_OWN_SLOT:
        deny_start(up);
        break;
    case DAMAGE_ENDED:
        atomic_store(&up->ended, next_random(state) % 2 ? UINT64_MAX : next_random(state));
        break;
    case DAMAGE_SLEEP:
        atomic_fetch_add(&up->task_sleep, next_random(state) % 3);
        atomic_fetch_add(&up->space_sleep, next_random(state) % 3);
        break;
    case DAMAGE_TASK_HEAD:
        atomic_store(&up->task_head, next_random(state));
        break;
    case DAMAGE_RING_COUNT:
        atomic_store(&up->ring_count, next_random(state));
        break;
    case DAMAGE_CRASH:
        fill_random(up->crash, sizeof up->crash, state);
        atomic_store((_Atomic uint32_t *)(void *)up->crash, (uint32_t)SIGABRT);
        break;
    default:
        write_false_end(up, state);
    }
}

typedef enum sequel {
    THEN_RETURN,
    THEN_WRITE,
    THEN_FAIL,
    THEN_LOOP,
    THEN_EXIT,
    THEN_CRASH,
    SEQUELS
} sequel;

static int carry_on(pebble_task *task, sequel then) {
    static const char block[100 * 1000];
    switch (then) {
    case THEN_RETURN:
        return 0;
    case THEN_WRITE:
        for (int i = 0; i < 5; i++)
            pebble_task_write(task, block, sizeof block);
        return 0;
    case THEN_FAIL:
        return pebble_task_fail(task, 3, "as said");
    case THEN_LOOP:
        for (;;)
            pause();
    case THEN_EXIT:
        _exit(0);
    default:
        abort();
    }
}

/* The processes that have run an attack, of one test; and whether the damage of the last is plain (also if
 * it was found, and the process ended for it, before that could say so). */
typedef struct attackers {
    counter count;
    _Atomic bool done, plain;
    _Atomic pid_t pids[4096];
} attackers;

static void note_attacker(attackers *list) {
    list->pids[(counter_add(&list->count, 1) - 1) % 4096] = getpid();
}

static bool is_attacker(attackers *list, pid_t pid) {
    for (uint32_t i = 0; i < counter_value(&list->count) && i < 4096; i++) {
        if (list->pids[i] == pid)
            return true;
    }
    return false;
}

typedef struct attack {
    uint64_t seed;
    damage kind;
    sequel then;
    attackers *list;
} attack;

/* Whether nobody can take the damage for what a worker writes: the tail is where none can be, or behind
 * what was read last (head) there is no record, or the end of a task that does not run (sequence). */
static bool is_plain(const channel_up *up, uint32_t head, uint64_t sequence) {
    uint32_t size = atomic_load(&up->result_tail) - head;
    result_record record;
    if (size == 0)
        return false;
    if (size < CHANNEL_LINE || size > CHANNEL_RING)
        return true;
    memcpy(&record, up->ring + (head & (CHANNEL_RING - 1)), sizeof record);
    if (record.kind == RECORD_DATA)
        return false; /* whose it is shows when that task ends */
    return (record.kind != RECORD_DONE && record.kind != RECORD_FAILED) ||
           record.sequence != sequence;
}

static int attack_channel(pebble_task *task, const void *input, size_t input_size) {
    attack what = *(const attack *)input;
    channel_up *up = find_mapping("memfd:pebble-up", NULL);
    (void)input_size;
    if (up == NULL)
        return pebble_task_fail(task, 99, "no channel found");
    uint32_t head = atomic_load(&up->result_tail);
    uint64_t sequence = atomic_load(&up->ended);
    note_attacker(what.list);
    do_damage(up, what.kind, &what.seed);
    atomic_store(&what.list->plain, is_plain(up, head, sequence));
    atomic_store(&what.list->done, true);
    return carry_on(task, what.then);
}

/* ---- What must hold ---- */

static pebble_future *schedule_attack(pebble_pool *pool, const attack *what,
                                      int64_t timeout_ns) {
    atomic_store(&what->list->done, false);
    atomic_store(&what->list->plain, true);
    return schedule(pool, attack_channel, what, sizeof *what, timeout_ns);
}

static pebble_pool *new_pool(int workers) {
    return new_process_pool(
        PEBBLE_POOL_OPTIONS(.max_workers = workers, .termination_grace_ns = GRACE_NS));
}

static void show(const char *what, pebble_future *future) {
    const pebble_failure *failure = pebble_future_failure(future);
    print_error("%s: done %d, %s, pid %d: %s\n", what, pebble_future_done(future),
                failure != NULL ? pebble_error_name(failure->kind) : "no failure",
                (int)pebble_future_pid(future), failure != NULL ? failure->message : "");
}

/* An honest task's end: right, or dead with a process that has run an attack. (What another task
 * of that process has left unread is lost with its channel.) */
static bool honest_end(pebble_future *future, int n, attackers *list) {
    int result = 0;
    pebble_error error =
        pebble_future_copy_result(future, DEADLINE_NS, &result, sizeof result);
    const pebble_failure *failure = pebble_future_failure(future);
    bool right = error == PEBBLE_OK ? result == n * n
                                    : error == PEBBLE_ERR_TASK_EXPIRED && list != NULL &&
                                          is_attacker(list, failure->pid);
    if (!right)
        show("honest task", future);
    pebble_future_unref(future);
    return right;
}

static bool pool_works_with(pebble_pool *pool, attackers *list, int64_t timeout_ns) {
    pebble_future *futures[HONEST];
    bool right = true;
    for (int n = 0; n < HONEST; n++)
        futures[n] = schedule(pool, square, &n, sizeof n, timeout_ns);
    for (int n = 0; n < HONEST; n++)
        right &= honest_end(futures[n], n, list);
    return right;
}

/* The pool does its work, all of its workers included. */
static bool pool_works(pebble_pool *pool, attackers *list) {
    return pool_works_with(pool, list, 0);
}

/* A task that runs in another worker all the while. */
typedef struct innocent {
    counter begun, over;
    pebble_future *future;
    pid_t pid;
} innocent;

static int stand_by(pebble_task *task, const void *input, size_t input_size) {
    innocent *self = *(innocent *const *)input;
    counter_add(&self->begun, 1);
    return counter_wait(&self->over, 1) ? tell_pid(task, input, input_size) : 1;
}

static innocent *start_innocent(pebble_pool *pool, innocent *self) {
    memset(self, 0, sizeof *self);
    self->future = schedule(pool, stand_by, &self, sizeof self, 0);
    counter_expect(&self->begun, 1);
    self->pid = pebble_future_pid(self->future);
    return self;
}

/* It has run on in the process where it began. */
static bool innocent_ends_well(innocent *self) {
    int pid = 0;
    counter_add(&self->over, 1);
    bool right = pebble_future_copy_result(self->future, DEADLINE_NS, &pid, sizeof pid) ==
                     PEBBLE_OK &&
                 self->pid > 0 && pid == self->pid;
    if (!right)
        show("innocent task", self->future);
    pebble_future_unref(self->future);
    return right;
}

/* The attack has ended in a way in which that one can; and if its process had to end for it, that has. */
static bool ended_well(const attack *what, pebble_future *future) {
    pebble_error error = pebble_future_result(future, DEADLINE_NS, NULL, NULL);
    const pebble_failure *failure = pebble_future_failure(future);
    bool plain = atomic_load(&what->list->plain), right = false;
    bool told = what->kind == DAMAGE_FALSE_END && !plain; /* perhaps its own end */
    if (error == PEBBLE_ERR_TASK_EXPIRED)
        right = what->then != THEN_LOOP || plain || what->kind == DAMAGE_OWN_SLOT;
    else if (error == PEBBLE_ERR_TASK_TIMEOUT)
        right = what->then == THEN_LOOP && !plain;
    else if (error == PEBBLE_OK)
        right = what->then == THEN_RETURN || what->then == THEN_WRITE || told;
    else if (error == PEBBLE_ERR_TASK_FAILED)
        right = failure->code == 3 ? what->then == THEN_FAIL : failure->code == 1 && told;
    bool ends = error == PEBBLE_ERR_TASK_EXPIRED || error == PEBBLE_ERR_TASK_TIMEOUT;
    right &=
        !ends || (is_attacker(what->list, failure->pid) && !process_lives(failure->pid));
    if (!right)
        show("attacker", future);
    return right;
}

static bool attacked_well(pebble_pool *pool, const attack *what) {
    pebble_future *honest[HONEST];
    bool right = true;
    int n = 0;
    /* A task that denies that it runs may be taken back, one that tells its own end has ended, and
     * both go on: what comes behind, where nothing seems to run, is missed at its own deadline. */
    bool unseen = what->kind == DAMAGE_OWN_SLOT || what->kind == DAMAGE_FALSE_END;
    int64_t timeout_ns = unseen ? SOON_NS : 0;
    for (; n < HONEST / 2; n++)
        right &=
            honest_end(schedule(pool, square, &n, sizeof n, timeout_ns), n, what->list);
    pebble_future *future = schedule_attack(
        pool, what, what->then == THEN_LOOP ? TASK_TIMEOUT_NS : DEADLINE_NS);
    for (; n < HONEST; n++)
        honest[n] = schedule(pool, square, &n, sizeof n, timeout_ns);
    right &= ended_well(what, future);
    pebble_future_unref(future);
    for (int i = HONEST / 2; i < HONEST; i++)
        right &= honest_end(honest[i], i, what->list);
    return right && pool_works_with(pool, what->list, timeout_ns);
}

static void attack_of_seed(attack *what, unsigned seed) {
    uint64_t state = seed * UINT64_C(0x9E3779B97F4A7C15) + 1;
    next_random(&state);
    what->kind = (damage)(seed % DAMAGE_KINDS);
    what->then = (sequel)(seed / DAMAGE_KINDS % SEQUELS);
    what->seed = state | 1;
}

/* In a pool to which nothing was done before, beside an innocent task. */
static bool attacked_beside(innocent *beside, const attack *what) {
    pebble_pool *pool = new_pool(WORKERS);
    start_innocent(pool, beside);
    bool right = attacked_well(pool, what);
    right &= innocent_ends_well(beside);
    stop_join_free(pool);
    return right;
}

/* Without somebody beside: one after another in the same pool. */
static void check_seeds(innocent *beside, unsigned count) {
    const char *only = getenv("PEBBLE_TEST_SEED");
    unsigned first = only != NULL ? (unsigned)atoi(only) : 0;
    attackers *list = shared_memory(sizeof *list);
    pebble_pool *pool = beside == NULL ? new_pool(1) : NULL;
    for (unsigned seed = first; seed < (only != NULL ? first + 1 : count); seed++) {
        attack what = {.list = list};
        attack_of_seed(&what, seed);
        if (beside != NULL ? attacked_beside(beside, &what) : attacked_well(pool, &what))
            continue;
        fail_msg("PEBBLE_TEST_SEED=%u: %s, sequel %d", seed, kinds[what.kind].name,
                 (int)what.then);
    }
    if (pool != NULL)
        close_join_free(pool);
}

/* Each kind of damage with each sequel. */
static void test_seeds(void **unused) {
    (void)unused;
    check_seeds(shared_memory(sizeof(innocent)), DAMAGE_KINDS * SEQUELS);
}

/* The same with one worker: who comes behind the attacker has nobody else to go to. */
static void test_seeds_one_worker(void **unused) {
    (void)unused;
    check_seeds(NULL, DAMAGE_KINDS * SEQUELS / 2);
}

/* ---- Damage that is looked at ---- */

/* The attacker stays, and has no timeout. */
static bool ended_by_engine(pebble_future *future, pid_t pid) {
    pebble_error error = pebble_future_result(future, DEADLINE_NS, NULL, NULL);
    const pebble_failure *failure = pebble_future_failure(future);
    return error == PEBBLE_ERR_TASK_EXPIRED && failure->pid == pid &&
           (failure->signal == SIGTERM || failure->signal == SIGKILL) &&
           !process_lives(pid);
}

/* Goes on as if nothing had been, but for a task that has told its end, be it its own. One that denies
 * its start is taken back, which its process does not notice. */
static bool unimpressed(const attack *what, pebble_future *future, pid_t pid) {
    bool ended = pebble_future_done(future);
    pebble_future_cancel(future);
    pebble_error error = pebble_future_result(future, DEADLINE_NS, NULL, NULL);
    if (ended)
        return what->kind == DAMAGE_FALSE_END &&
               (error == PEBBLE_OK || error == PEBBLE_ERR_TASK_FAILED);
    return error == PEBBLE_ERR_TASK_CANCELLED &&
           (what->kind == DAMAGE_OWN_SLOT || !process_lives(pid));
}

typedef struct look {
    attackers *list;
    pebble_future *future;
} look;

/* The program looks at the channel to say whether a task has ended. */
static bool is_done(void *context) {
    look *at = context;
    return pebble_future_done(at->future) || atomic_load(&at->list->done);
}

static bool looked_at_well(pebble_pool *pool, const attack *what) {
    look at = {.list = what->list};
    at.list->count.value = 0;
    at.future = schedule_attack(pool, what, 0);
    assert_true(wait_until(is_done, &at));
    pebble_future_done(at.future);
    pid_t pid = at.list->pids[0];
    bool right = atomic_load(&at.list->plain) ? ended_by_engine(at.future, pid)
                                              : unimpressed(what, at.future, pid);
    if (!right)
        show(kinds[what->kind].name, at.future);
    pebble_future_unref(at.future);
    return right;
}

/* After some tasks of others, in the worker that may have done them. True: the damage was found. */
static bool check_look(const attack *what, innocent *beside, int before) {
    pebble_pool *pool = new_pool(WORKERS);
    start_innocent(pool, beside);
    for (int n = 0; n < before; n++)
        assert_int_equal(take_int(schedule(pool, square, &n, sizeof n, 0)), n * n);
    bool right = looked_at_well(pool, what);
    bool found = atomic_load(&what->list->plain);
    right &= innocent_ends_well(beside);
    right &= !found || pool_works(pool, NULL);
    stop_join_free(pool);
    expect_gone(what->list->pids[0]);
    assert_true(right);
    return found;
}

static void test_damage_is_found(void **unused) {
    enum { EACH = 6 };
    attackers *list = shared_memory(sizeof *list);
    innocent *beside = shared_memory(sizeof *beside);
    (void)unused;
    for (int kind = 0; kind < DAMAGE_KINDS; kind++) {
        int found = 0;
        for (int i = 0; i < EACH; i++) {
            attack what = {.list = list};
            attack_of_seed(&what, (unsigned)(1000 + i));
            what.kind = (damage)kind;
            what.then = THEN_LOOP;
            found += check_look(&what, beside, i);
        }
        print_message("%s: %d of %d found\n", kinds[kind].name, found, EACH);
        if (kinds[kind].found == SOMETIMES)
            assert_in_range(found, 1, EACH - 1);
        else
            assert_int_equal(found, kinds[kind].found == ALWAYS ? EACH : 0);
    }
}

/* The task before it may have left its end unread, which is lost; the attacker is not run again for that. */
static void test_attackers_run_once(void **unused) {
    enum { ROUNDS = 200 };
    attackers *list = shared_memory(sizeof *list);
    attack what = {.kind = DAMAGE_TAIL, .then = THEN_CRASH, .list = list};
    pebble_pool *pool = new_pool(1);
    (void)unused;
    for (int n = 0; n < ROUNDS; n++) {
        what.seed = 88172645463325252u + (uint64_t)n;
        pebble_future *before = schedule(pool, square, &n, sizeof n, 0);
        pebble_future *attacker = schedule_attack(pool, &what, 0);
        pebble_future *behind = schedule(pool, square, &n, sizeof n, 0);
        expect_end(attacker, PEBBLE_ERR_TASK_EXPIRED);
        assert_int_equal(take_int(behind), n * n);
        assert_true(honest_end(before, n, list));
    }
    close_join_free(pool);
    assert_int_equal(counter_value(&list->count), ROUNDS);
}

/* As if nothing had been told that was not read yet. */
static int take_back_ends(pebble_task *task, const void *input, size_t input_size) {
    channel_up *up = find_mapping("memfd:pebble-up", NULL);
    channel_down *down = find_mapping("memfd:pebble-down", NULL);
    (void)input, (void)input_size;
    atomic_store(&up->result_tail, atomic_load(&down->result_head));
    return carry_on(task, THEN_LOOP);
}

/* The task before it, which has no timeout, seems to run for ever. */
static void test_timeout_behind_a_lost_end(void **unused) {
    enum { ROUNDS = 30 };
    int lost = 0;
    pebble_pool *pool = new_pool(1);
    (void)unused;
    for (int n = 0; n < ROUNDS; n++) {
        assert_true(pool_works(pool, NULL)); /* tasks are short: the next go ahead */
        pebble_future *before = schedule(pool, square, &n, sizeof n, 0);
        pebble_future *attacker = schedule(pool, take_back_ends, NULL, 0, TASK_TIMEOUT_NS);
        expect_ok(pebble_future_wait(attacker, SOON_NS));
        const pebble_failure *failure = pebble_future_failure(attacker);
        bool timed_out = failure->kind == PEBBLE_ERR_TASK_TIMEOUT;
        assert_true(timed_out || failure->kind == PEBBLE_ERR_TASK_EXPIRED);
        lost += !timed_out;
        expect_end(before, timed_out ? PEBBLE_OK : PEBBLE_ERR_TASK_EXPIRED);
        pebble_future_unref(attacker);
    }
    close_join_free(pool);
    print_message("%d lost\n", lost);
    assert_true(lost > 0);
}

/* ---- Damage that goes on ---- */

static void *scribble(void *context) {
    attack what = *(attack *)context;
    channel_up *up = find_mapping("memfd:pebble-up", NULL);
    for (;;)
        do_damage(up, what.kind, &what.seed);
    return NULL;
}

/* Leaves a thread behind that goes on. */
static int attack_for_ever(pebble_task *task, const void *input, size_t input_size) {
    static attack what;
    pthread_t thread;
    (void)task;
    (void)input_size;
    what = *(const attack *)input;
    return pthread_create(&thread, NULL, scribble, &what);
}

/* Right, or lost with the process that goes wrong, which may also have written its result. */
static bool ends_beside(pebble_future *future, int n, const innocent *beside) {
    int result = 0;
    pebble_error error =
        pebble_future_copy_result(future, DEADLINE_NS, &result, sizeof result);
    return pebble_future_pid(future) == beside->pid
               ? error == PEBBLE_OK && result == n * n
               : pebble_future_done(future) && error != PEBBLE_ERR_BROKEN;
}

static void check_thread_left_behind(damage kind, innocent *beside) {
    pebble_pool *pool = new_pool(WORKERS);
    attack what = {.kind = kind, .seed = 88172645463325252u};
    pebble_future *futures[HONEST];
    bool right = true;
    start_innocent(pool, beside);
    pebble_future *attacker =
        schedule(pool, attack_for_ever, &what, sizeof what, TASK_TIMEOUT_NS);
    expect_ok(pebble_future_wait(attacker, DEADLINE_NS));
    assert_int_not_equal(pebble_future_pid(attacker), beside->pid);
    for (int n = 0; n < HONEST; n++)
        futures[n] = schedule(pool, square, &n, sizeof n, TASK_TIMEOUT_NS);
    right &= innocent_ends_well(beside); /* and its worker is free for others */
    for (int n = 0; n < HONEST; n++) {
        if (!ends_beside(futures[n], n, beside)) {
            show("honest task", futures[n]);
            right = false;
        }
        pebble_future_unref(futures[n]);
    }
    pebble_future_unref(attacker);
    stop_join_free(pool);
    assert_true(right);
}

/* One at a time goes wrong for as long as its process lives. Who comes next to that process has a
 * timeout, and ends in time however that is; on the pool's other worker all is well. */
static void test_thread_left_behind(void **unused) {
    innocent *beside = shared_memory(sizeof *beside);
    (void)unused;
    for (int kind = 0; kind < DAMAGE_KINDS; kind++) {
        if (kind == DAMAGE_CRASH)
            continue;
        print_message("%s\n", kinds[kind].name);
        check_thread_left_behind((damage)kind, beside);
    }
}

/* Once, when the worker has nothing to do any more. */
static void *damage_head_later(void *context) {
    channel_up *up = find_mapping("memfd:pebble-up", NULL);
    counter *go = context;
    counter_wait(go, 1);
    atomic_store(&up->task_head, UINT32_C(0x80000000));
    counter_add(go, 1);
    return NULL;
}

static int leave_thread_for_later(pebble_task *task, const void *input,
                                  size_t input_size) {
    pthread_t thread;
    (void)task, (void)input_size;
    return pthread_create(&thread, NULL, damage_head_later, *(counter *const *)input);
}

/* The only worker says, from now on, that there is no room for a task: it is replaced. */
static void test_no_room_for_ever(void **unused) {
    counter *go = shared_memory(sizeof *go);
    int n = 12;
    (void)unused;
    pebble_pool *pool = new_pool(1);
    pebble_future *future = schedule(pool, leave_thread_for_later, &go, sizeof go, 0);
    expect_ok(pebble_future_wait(future, DEADLINE_NS));
    pid_t pid = pebble_future_pid(future);
    expect_end(future, PEBBLE_OK);
    counter_add(go, 1);
    counter_expect(go, 2);
    assert_int_equal(take_int(schedule(pool, square, &n, sizeof n, 0)), 144);
    expect_gone(pid);
    assert_true(pool_works(pool, NULL));
    close_join_free(pool);
}

/* The states of all tasks are nonsense: what is cancelled ends. */
static int damage_slots_and_stay(pebble_task *task, const void *input, size_t input_size) {
    channel_up *up = find_mapping("memfd:pebble-up", NULL);
    uint64_t state = 88172645463325252u;
    (void)input_size;
    fill_random(up->slots, sizeof up->slots, &state);
    atomic_store(&up->ended, UINT64_MAX); /* and all have ended, it says */
    counter_add(*(counter *const *)input, 1);
    return carry_on(task, THEN_LOOP);
}

/* Of those behind it, the first may seem to have started, too, and is lost with it. */
static void check_damaged_slots(bool cancel) {
    counter *begun = shared_memory(sizeof *begun);
    pebble_pool *pool = new_pool(1);
    pebble_future *behind[HONEST];
    int lost = 0;
    assert_true(
        pool_works(pool, NULL)); /* tasks are short: the next go behind each other */
    pebble_future *future = schedule(pool, damage_slots_and_stay, &begun, sizeof begun,
                                     cancel ? 0 : TASK_TIMEOUT_NS);
    for (int n = 0; n < HONEST; n++)
        behind[n] = schedule(pool, square, &n, sizeof n, 0);
    counter_expect(begun, 1);
    pid_t pid = pebble_future_pid(future);
    if (cancel)
        assert_true(pebble_future_cancel(future));
    expect_end(future, cancel ? PEBBLE_ERR_TASK_CANCELLED : PEBBLE_ERR_TASK_TIMEOUT);
    assert_false(process_lives(pid));
    for (int n = 0; n < HONEST; n++) {
        expect_ok(pebble_future_wait(behind[n], DEADLINE_NS));
        if (pebble_future_pid(behind[n]) != pid) {
            assert_int_equal(take_int(behind[n]), n * n);
            continue;
        }
        expect_end(behind[n], PEBBLE_ERR_TASK_EXPIRED);
        lost++;
    }
    stop_join_free(pool);
    print_message("%d lost\n", lost);
    assert_in_range(lost, 0, 1);
}

static void test_cancel_with_damaged_slots(void **unused) {
    (void)unused;
    check_damaged_slots(true);
}

static void test_timeout_with_damaged_slots(void **unused) {
    (void)unused;
    check_damaged_slots(false);
}

/* ---- A waiting thread is not held up ---- */

static int write_without_end(pebble_task *task, const void *input, size_t input_size) {
    static const char block[4096];
    (void)input;
    (void)input_size;
    while (pebble_task_write(task, block, sizeof block) == PEBBLE_OK)
        ;
    return 1;
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return PEBBLE_SECONDS(now.tv_sec) + now.tv_nsec;
}

/* An honest task that hangs, in a pool of its own, for as long as an attack goes on: how late its timeout
 * is is how busy the machine is. */
typedef struct control_task {
    pebble_pool *pool;
    pebble_future *future;
    int64_t due_ns;
    _Atomic int64_t ended_ns;
} control_task;

static int hang(pebble_task *task, const void *input, size_t input_size) {
    (void)input, (void)input_size;
    return carry_on(task, THEN_LOOP);
}

static void control_ended(pebble_future *future, void *context) {
    (void)future;
    atomic_store(&((control_task *)context)->ended_ns, now_ns());
}

static void control_start(control_task *control, int64_t timeout_ns) {
    control->pool = new_pool(1);
    assert_true(pool_works(control->pool, NULL));
    control->due_ns = now_ns() + timeout_ns;
    control->future = schedule(control->pool, hang, NULL, 0, timeout_ns);
    expect_ok(pebble_future_add_callback(control->future, control_ended, control));
}

/* How late it was. */
static int64_t control_end(control_task *control) {
    expect_end(control->future, PEBBLE_ERR_TASK_TIMEOUT);
    stop_join_free(control->pool);
    return atomic_load(&control->ended_ns) - control->due_ns;
}

/* Its deadline ends it, though there is always more to read; a wait ends at its own. */
static void test_endless_result(void **unused) {
    (void)unused;
    int64_t timeout_ns = PEBBLE_MILLISECONDS(150), wait_ns = PEBBLE_MILLISECONDS(20);
    control_task control = {0};
    pebble_pool *pool = new_pool(WORKERS);
    control_start(&control, timeout_ns);
    pebble_future *future = schedule(pool, write_without_end, NULL, 0, timeout_ns);
    int64_t start_ns = now_ns();
    assert_int_equal(pebble_future_wait(future, wait_ns), PEBBLE_ERR_TIMEOUT);
    int64_t waited_ns = now_ns() - start_ns;
    expect_end(future, PEBBLE_ERR_TASK_TIMEOUT);
    int64_t ended_ns = now_ns() - start_ns;
    int64_t late_ns = control_end(&control);
    print_message("waited %.1f ms, ended after %.1f ms\n", (double)waited_ns / 1e6,
                  (double)ended_ns / 1e6);
    assert_true(pool_works(pool, NULL));
    stop_join_free(pool);
    assert_true(waited_ns < SOON_NS + late_ns);
    assert_true(ended_ns < SOON_NS + late_ns);
}

/* A tail that promises less than a record, and nothing behind it. */
static int promise_a_little(pebble_task *task, const void *input, size_t input_size) {
    channel_up *up = find_mapping("memfd:pebble-up", NULL);
    (void)input_size;
    atomic_fetch_add(&up->result_tail, 8);
    counter_add(*(counter *const *)input, 1);
    return carry_on(task, THEN_LOOP);
}

/* Always one ring ahead of the reader, with pieces of a result that never ends. */
static int write_ahead(pebble_task *task, const void *input, size_t input_size) {
    channel_up *up = find_mapping("memfd:pebble-up", NULL);
    const channel_down *down = find_mapping("memfd:pebble-down", NULL);
    uint32_t start = atomic_load(&up->result_tail);
    (void)task;
    (void)input_size;
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t size = CHANNEL_RING / 4;
        result_record record = {.kind = RECORD_DATA, .size = size - sizeof record};
        memcpy(up->ring + (start + i * size) % CHANNEL_RING, &record, sizeof record);
    }
    counter_add(*(counter *const *)input, 1);
    for (;;)
        atomic_store(&up->result_tail, atomic_load(&down->result_head) + CHANNEL_RING);
    return 0;
}

static void *churn(void *memory) {
    channel_up *up = memory;
    for (;;)
        atomic_fetch_add(&up->ring_count, 1);
    return NULL;
}

static int churn_ring_count(pebble_task *task, const void *input, size_t input_size) {
    pthread_t thread;
    (void)input_size;
    pthread_create(&thread, NULL, churn, find_mapping("memfd:pebble-up", NULL));
    counter_add(*(counter *const *)input, 1);
    return carry_on(task, THEN_LOOP);
}

/* A wait ends at its deadline, and the task at its own. */
static void check_wait_ends(pebble_function function) {
    int64_t timeout_ns = PEBBLE_MILLISECONDS(400), wait_ns = PEBBLE_MILLISECONDS(100);
    counter *begun = shared_memory(sizeof *begun);
    control_task control = {0};
    pebble_pool *pool = new_pool(1);
    control_start(&control, timeout_ns);
    pebble_future *future = schedule(pool, function, &begun, sizeof begun, timeout_ns);
    counter_expect(begun, 1);
    int64_t start_ns = now_ns();
    pebble_error error = pebble_future_wait(future, wait_ns);
    int64_t waited_ns = now_ns() - start_ns;
    pebble_future_wait(future, DEADLINE_NS);
    int64_t ended_ns = now_ns() - start_ns;
    bool done = pebble_future_done(future);
    int64_t late_ns = control_end(&control);
    show("attacker", future);
    pebble_future_unref(future);
    stop_join_free(pool);
    print_message("%s after %.1f ms, ended after %.1f ms, an honest one %.1f ms late\n",
                  pebble_error_name(error), (double)waited_ns / 1e6,
                  (double)ended_ns / 1e6, (double)late_ns / 1e6);
    assert_true(done);
    assert_true(waited_ns < SOON_NS + late_ns);
    assert_true(ended_ns < SOON_NS + late_ns);
    /* At its own deadline, or before that if the damage was seen; not at the task's. */
    assert_true(error == PEBBLE_ERR_TIMEOUT || waited_ns < 2 * wait_ns);
}

static void test_wait_ends_with_odd_tail(void **unused) {
    (void)unused;
    check_wait_ends(promise_a_little);
}

static void test_wait_ends_with_endless_data(void **unused) {
    (void)unused;
    check_wait_ends(write_ahead);
}

static void test_wait_ends_with_ring_count(void **unused) {
    (void)unused;
    check_wait_ends(churn_ring_count);
}

/* Runs, says that it does not, and dies: it must not be run for ever. */
static int deny_and_die(pebble_task *task, const void *input, size_t input_size) {
    counter *runs = *(counter *const *)input;
    (void)task;
    (void)input_size;
    counter_add(runs, 1);
    deny_start(find_mapping("memfd:pebble-up", NULL));
    _exit(7);
}

static void test_denied_start_ends(void **unused) {
    counter *runs = shared_memory(sizeof *runs);
    (void)unused;
    pebble_pool *pool = new_pool(1);
    pebble_future *future = schedule(pool, deny_and_die, &runs, sizeof runs, 0);
    pebble_error error = pebble_future_wait(future, PEBBLE_SECONDS(5));
    print_message("%u runs\n", counter_value(runs));
    pebble_future_unref(future);
    bool works = error == PEBBLE_OK && pool_works(pool, NULL);
    stop_join_free(pool);
    assert_int_equal(error, PEBBLE_OK);
    assert_true(works); /* one task is to blame, not the start of workers */
}

/* Says that all behind it have started. */
static int start_all(pebble_task *task, const void *input, size_t input_size) {
    counter *begun = *(counter *const *)input;
    channel_up *up = find_mapping("memfd:pebble-up", NULL);
    (void)task, (void)input_size;
    counter_add(begun, 1);
    counter_wait(begun, 2); /* there are some */
    for (int i = 0; i < CHANNEL_SLOTS; i++) {
        uint64_t word = atomic_load(&up->slots[i].word);
        if ((word & SLOT_STATE) == SLOT_QUEUED)
            atomic_store(&up->slots[i].word,
                         (word & ~(uint64_t)SLOT_STATE) | SLOT_RUNNING);
    }
    counter_add(begun, 1);
    for (;;)
        pause();
    return 0;
}

static int count_run(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input_size;
    counter_add(*(counter *const *)input, 1);
    return 0;
}

/* Two that seem to run in one worker are cancelled: neither runs afterwards, and the one that did run
 * does not run twice. */
static void test_two_cancelled_in_one_worker(void **unused) {
    counter *begun = shared_memory(sizeof *begun), *runs = shared_memory(sizeof *runs);
    (void)unused;
    pebble_pool *pool = new_pool(1);
    for (int n = 0; n < 300; n++) /* tasks are short: the next go behind each other */
        expect_end(schedule(pool, square, &n, sizeof n, 0), PEBBLE_OK);
    pebble_future *attacker = schedule(pool, start_all, &begun, sizeof begun, 0);
    pebble_future *first = schedule(pool, count_run, &runs, sizeof runs, 0);
    pebble_future *second = schedule(pool, count_run, &runs, sizeof runs, 0);
    counter_expect(begun, 1);
    counter_add(begun, 1);
    counter_expect(begun, 3);
    assert_true(pebble_future_cancel(first));
    assert_true(pebble_future_cancel(second));
    expect_end(first, PEBBLE_ERR_TASK_CANCELLED);
    expect_end(second, PEBBLE_ERR_TASK_CANCELLED);
    expect_end(attacker, PEBBLE_ERR_TASK_EXPIRED);
    close_join_free(pool);
    assert_int_equal(counter_value(runs), 0);
    assert_int_equal(counter_value(begun), 3);
}

/* No descriptor has such a number; the bell is put aside at 500 and more. */
enum { BEYOND_BELL = 600 };

/* Fills the counter of every eventfd: no further write is an event. */
static int mute_bells(pebble_task *task, const void *input, size_t input_size) {
    (void)task, (void)input, (void)input_size;
    for (int fd = 3; fd < BEYOND_BELL; fd++) {
        char path[64], target[64];
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        ssize_t size = readlink(path, target, sizeof target - 1);
        target[size > 0 ? size : 0] = '\0';
        uint64_t most = strstr(target, "[eventfd]") != NULL ? UINT64_MAX - 1 : 0;
        while (most > 0) {
            if (write(fd, &most, sizeof most) != sizeof most)
                most /= 2; /* it holds some */
        }
    }
    return 0;
}

static void count_call(pebble_future *future, void *calls) {
    (void)future;
    counter_add(calls, 1);
}

static void set_flags(int flags) {
    for (int fd = 3; fd < BEYOND_BELL; fd++)
        fcntl(fd, F_SETFL, flags);
}

/* Full, and whoever writes then waits. */
static void *block_all(void *unused) {
    usleep(20 * 1000);
    for (;;) {
        set_flags(O_NONBLOCK);
        mute_bells(NULL, NULL, 0);
        set_flags(0);
        usleep(1000);
    }
    return unused;
}

/* Of a result without end, the program reads a turn's bytes, and would have the bell ring for the rest. */
static int block_bells(pebble_task *task, const void *input, size_t input_size) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, block_all, NULL) != 0)
        return 1;
    return write_without_end(task, input, input_size);
}

/* The program does not wait to ring, whatever the worker makes of its bell. */
static void test_bell_that_blocks(void **unused) {
    counter *calls = shared_memory(sizeof *calls);
    (void)unused;
    pebble_pool *pool = new_pool(1), *other = new_pool(1);
    for (uint32_t n = 1; n <= 3; n++) {
        pebble_future *future =
            schedule(pool, block_bells, NULL, 0, PEBBLE_MILLISECONDS(200));
        expect_ok(pebble_future_add_callback(future, count_call, calls));
        counter_expect(calls, n); /* nobody waits for it but the supervisor */
        expect_end(future, PEBBLE_ERR_TASK_TIMEOUT);
        assert_true(pool_works(other, NULL));
    }
    stop_join_free(pool);
    stop_join_free(other);
}

static int claim_ends(pebble_task *task, const void *input, size_t input_size) {
    channel_up *up = find_mapping("memfd:pebble-up", NULL);
    (void)input_size;
    atomic_store(&up->ended, UINT64_MAX);
    counter_add(*(counter *const *)input, 1);
    return carry_on(task, THEN_LOOP);
}

/* The program does not look again and again for an end that was never sent. */
static void test_false_end_in_a_closed_pool(void **unused) {
    counter *begun = shared_memory(sizeof *begun);
    struct timespec before, after;
    (void)unused;
    pebble_pool *pool = new_pool(1);
    pebble_future *future = schedule(pool, claim_ends, &begun, sizeof begun, 0);
    counter_expect(begun, 1);
    expect_ok(pebble_pool_close(pool));
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    usleep(200 * 1000);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    assert_true((after.tv_sec - before.tv_sec) * INT64_C(1000000000) + after.tv_nsec -
                    before.tv_nsec <
                PEBBLE_MILLISECONDS(50));
    stop_join_free(pool);
    expect_end(future, PEBBLE_ERR_TASK_CANCELLED);
}

static void test_mute_bell(void **unused) {
    counter *calls = shared_memory(sizeof *calls);
    int number = 3;
    (void)unused;
    pebble_pool *pool = new_pool(1);
    expect_end(schedule(pool, mute_bells, NULL, 0, 0), PEBBLE_OK);
    for (uint32_t n = 1; n <= 3; n++) {
        pebble_future *future = schedule(pool, square, &number, sizeof number, 0);
        expect_ok(pebble_future_add_callback(future, count_call, calls));
        counter_expect(calls, n); /* nobody else waits for it */
        expect_end(future, PEBBLE_OK);
    }
    close_join_free(pool);
}

/* ---- What a worker cannot do ---- */

/* What an attempt to write into the task ring gives: errno values. */
typedef struct attempts {
    int found, writable, map_again, protect, descriptors;
} attempts;

static int count_channel_descriptors(void) {
    char path[64], target[256];
    int count = 0;
    for (int fd = 0; fd < 1024; fd++) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        ssize_t size = readlink(path, target, sizeof target - 1);
        target[size > 0 ? size : 0] = '\0';
        count += strstr(target, "memfd:pebble") != NULL;
    }
    return count;
}

static int try_to_write_down(pebble_task *task, const void *input, size_t input_size) {
    char permissions[8] = "";
    channel_down *down = find_mapping("memfd:pebble-down", permissions);
    attempts result = {.found = down != NULL, .writable = permissions[1] == 'w'};
    (void)input;
    (void)input_size;
    result.descriptors = count_channel_descriptors();
    if (mprotect(down, sizeof *down, PROT_READ | PROT_WRITE) != 0)
        result.protect = errno;
    return (int)pebble_task_write(task, &result, sizeof result);
}

static int write_down(pebble_task *task, const void *input, size_t input_size) {
    channel_down *down = find_mapping("memfd:pebble-down", NULL);
    (void)task;
    (void)input;
    (void)input_size;
    *(volatile unsigned char *)(uintptr_t)down->ring = 1;
    return 0;
}

static int write_input(pebble_task *task, const void *input, size_t input_size) {
    (void)task;
    (void)input_size;
    *(volatile unsigned char *)(uintptr_t)input = 1;
    return 0;
}

static int map_writable(pebble_task *task, const void *input, size_t input_size) {
    void *down = find_mapping("memfd:pebble-down", NULL);
    void *copy = mremap(down, 0, sizeof(channel_down), MREMAP_MAYMOVE);
    int result = copy == MAP_FAILED ? errno : 0;
    (void)input;
    (void)input_size;
    if (copy != MAP_FAILED &&
        mprotect(copy, sizeof(channel_down), PROT_READ | PROT_WRITE) == 0)
        result = -1;
    return (int)pebble_task_write(task, &result, sizeof result);
}

static void test_down_is_read_only(void **unused) {
    (void)unused;
    attempts result;
    int mapped = 0;
    pebble_pool *pool = new_pool(1);
    pebble_future *future = schedule(pool, try_to_write_down, NULL, 0, 0);
    expect_ok(pebble_future_copy_result(future, DEADLINE_NS, &result, sizeof result));
    pebble_future_unref(future);
    assert_true(result.found);
    assert_false(result.writable);
    assert_int_equal(result.protect, EACCES);
    assert_int_equal(result.descriptors, 0);
    mapped = take_int(schedule(pool, map_writable, NULL, 0, 0));
    assert_int_not_equal(mapped, -1);
    close_join_free(pool);
}

static void expect_death(pebble_pool *pool, pebble_function function, const void *input,
                         size_t input_size, int signal) {
    pebble_future *future = schedule(pool, function, input, input_size, 0);
    assert_int_equal(pebble_future_result(future, DEADLINE_NS, NULL, NULL),
                     PEBBLE_ERR_TASK_EXPIRED);
    if (!WITH_ADDRESS_SANITIZER && !WITH_THREAD_SANITIZER) /* their handlers exit */
        assert_int_equal(pebble_future_failure(future)->signal, signal);
    pebble_future_unref(future);
    assert_true(pool_works(pool, NULL));
}

static void test_writing_down_is_fatal(void **unused) {
    (void)unused;
    pebble_pool *pool = new_pool(WORKERS);
    expect_death(pool, write_down, NULL, 0, SIGSEGV);
    expect_death(pool, write_input, "input", 5, SIGSEGV);
    close_join_free(pool);
}

/* ---- A bell without end ---- */

static int ring_without_end(pebble_task *task, const void *input, size_t input_size) {
    char path[64], target[256];
    uint64_t one = 1;
    (void)task;
    (void)input;
    (void)input_size;
    for (int fd = 3;; fd = fd < BEYOND_BELL ? fd + 1 : 3) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        ssize_t size = readlink(path, target, sizeof target - 1);
        target[size > 0 ? size : 0] = '\0';
        for (int i = 0; strstr(target, "eventfd") != NULL && i < 10000; i++) {
            if (write(fd, &one, sizeof one) != sizeof one)
                return errno;
        }
    }
}

static void test_bell_without_end(void **unused) {
    (void)unused;
    pebble_pool *pool = new_pool(WORKERS);
    pebble_future *future =
        schedule(pool, ring_without_end, NULL, 0, PEBBLE_MILLISECONDS(300));
    for (int i = 0; i < 20; i++)
        assert_true(pool_works(pool, NULL));
    expect_end(future, PEBBLE_ERR_TASK_TIMEOUT);
    close_join_free(pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        supported_test(test_seeds),
        supported_test(test_seeds_one_worker),
        supported_test(test_damage_is_found),
        supported_test(test_attackers_run_once),
        supported_test(test_timeout_behind_a_lost_end),
        supported_test(test_thread_left_behind),
        supported_test(test_no_room_for_ever),
        supported_test(test_cancel_with_damaged_slots),
        supported_test(test_timeout_with_damaged_slots),
        supported_test(test_endless_result),
        supported_test(test_wait_ends_with_odd_tail),
        supported_test(test_wait_ends_with_endless_data),
        supported_test(test_wait_ends_with_ring_count),
        supported_test(test_denied_start_ends),
        supported_test(test_two_cancelled_in_one_worker),
        supported_test(test_mute_bell),
        supported_test(test_bell_that_blocks),
        supported_test(test_false_end_in_a_closed_pool),
        supported_test(test_down_is_read_only),
        supported_test(test_writing_down_is_fatal),
        supported_test(test_bell_without_end),
    };
    cmocka_set_message_output(CM_OUTPUT_STDOUT);
    const char *filter = getenv("PEBBLE_TEST_FILTER");
    if (filter != NULL)
        cmocka_set_test_filter(filter);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
