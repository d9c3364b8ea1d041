/* as_completed.c - take results as they come, and the first of several answers.
 *
 * A map gives its results in the order of its inputs: a slow one holds up the others. With a
 * done-callback that puts what has ended into a queue, they come in the order of their
 * ends. And where one answer will do, wait_any waits for the first; the rest is cancelled.
 */
#include "check.h"

#include <pebble.h>

#include <inttypes.h>

/* The two largest primes below 2^32, and the largest below 2^62. */
#define PRIME UINT64_C(4294967291)
#define PRIME_BEFORE UINT64_C(4294967279)
#define LARGE_PRIME UINT64_C(4611686018427387847)

/* Tries divisors from 2 upwards: quick for those who have a small one. */
PEBBLE_TASK(uint64_t, search_up, (uint64_t, number)) {
    uint64_t divisor = 2;

    while (number % divisor != 0)
        divisor++;
    return divisor;
}

/* Tries divisors from the square root's bound downwards: quick for those with a large one. */
PEBBLE_TASK(uint64_t, search_down, (uint64_t, number)) {
    uint64_t divisor = UINT32_MAX;

    while (number % divisor != 0)
        divisor--;
    return divisor;
}

struct search {
    uint64_t number;
    pebble_future *future;
    pebble_queue *ended; /* of searches, in the order of their ends */
};

/* Runs in a thread of the library. */
static void search_ended(pebble_future *future, void *context) {
    struct search *search = context;

    (void)future;
    TRY(pebble_queue_put(search->ended, search, PEBBLE_FOREVER));
}

static struct search *next_ended(pebble_queue *ended) {
    void *item;

    TRY(pebble_queue_get(ended, PEBBLE_FOREVER, &item));
    return item;
}

/* The first number keeps a worker busy for half a minute. The others do not wait for it. */
static void take_as_completed(pebble_pool *pool) {
    struct search searches[] = {{.number = PRIME * PRIME_BEFORE},
                                {.number = 91},
                                {.number = 1001},
                                {.number = 10403},
                                {.number = 1000001},
                                {.number = 3 * LARGE_PRIME}};
    const size_t count = sizeof searches / sizeof *searches;
    struct search *search;
    pebble_queue *ended;
    uint64_t divisor;

    TRY(pebble_queue_new(0, &ended));
    for (size_t i = 0; i < count; i++) {
        search = &searches[i];
        search->ended = ended;
        TRY(search_up_schedule(pool, 0, &search->future, search->number));
        TRY(pebble_future_add_callback(search->future, search_ended, search));
    }

    for (size_t i = 1; i < count; i++) {
        search = next_ended(ended);
        TRY(search_up_result(search->future, 0, &divisor)); /* it is there */
        printf("%" PRIu64 " is %" PRIu64 " * %" PRIu64 "\n", search->number, divisor,
               search->number / divisor);
        EXPECT(search != &searches[0] && search->number % divisor == 0);
    }

    EXPECT(pebble_future_cancel(searches[0].future)); /* that is an end too */
    search = next_ended(ended);
    EXPECT(search == &searches[0]);
    EXPECT(search_up_result(search->future, 0, &divisor) == PEBBLE_ERR_TASK_CANCELLED);
    printf("%" PRIu64 ", scheduled first, came last: cancelled\n", search->number);

    for (size_t i = 0; i < count; i++)
        pebble_future_unref(searches[i].future);
    pebble_queue_free(ended);
}

/* Searches in both ways at once, and returns which was the first. */
static size_t race(pebble_pool *pool, uint64_t number) {
    const char *const names[] = {"upwards", "downwards"};
    pebble_future *futures[2];
    uint64_t divisor;
    size_t winner;

    TRY(search_up_schedule(pool, 0, &futures[0], number));
    TRY(search_down_schedule(pool, 0, &futures[1], number));
    TRY(pebble_future_wait_any(futures, 2, PEBBLE_FOREVER, &winner));
    TRY(pebble_future_copy_result(futures[winner], 0, &divisor, sizeof divisor));
    printf("%" PRIu64 " is divided by %" PRIu64 ", found %s\n", number, divisor,
           names[winner]);
    EXPECT(number % divisor == 0);

    EXPECT(pebble_future_cancel(futures[1 - winner]));
    TRY(pebble_future_wait_all(futures, 2, PEBBLE_FOREVER)); /* its process is gone */
    EXPECT(pebble_future_state(futures[1 - winner]) == PEBBLE_CANCELLED);
    pebble_future_unref(futures[0]);
    pebble_future_unref(futures[1]);
    return winner;
}

int main(void) {
    pebble_pool_options options = PEBBLE_POOL_OPTIONS_INIT;
    pebble_pool *pool;

    options.max_workers = 2; /* even if there is one processor: two searches at once */
    TRY(pebble_process_pool_new(&options, &pool));
    take_as_completed(pool);
    EXPECT(race(pool, 3 * LARGE_PRIME) == 0);
    EXPECT(race(pool, PRIME * PRIME_BEFORE) == 1);
    check_finish(pool);
    return 0;
}
