/* main.c - a pool of processes reads the system's documents, while some inputs are
 * hostile.
 *
 * The main job of Pebble on real input: every compressed manual page and document below
 * /usr/share is decompressed and parsed. Among them are inputs that hang, crash, eat
 * memory or end their process. Those fail, with their reason; all others must be as right
 * as without a pool; and the pool must be whole at the end.
 */
#include "check.h"
#include "clock.h"
#include "job.h"
#include "memory_growth.h"
#include "report.h"
#include "task.h"

#include <getopt.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>

#define MIB ((size_t)1024 * 1024)

enum { EXIT_INTERRUPTED = 130, PIDS_SHOWN = 8 };

static atomic_bool interrupted;

/* ---- Options ---- */

typedef struct options {
    char *const *folders;
    size_t limit;       /* of files; 0 for none */
    int64_t timeout_ns; /* of a task */
    bool all;           /* print every document */
} options;

static const char usage[] =
    "usage: documents [OPTION]... [FOLDER]...\n"
    "Parses the compressed documents below the folders (default: /usr/share) in a pool "
    "of\n"
    "processes, hostile inputs among them.\n"
    "  -n, --limit=COUNT      so many files at most, spread evenly; 0 for all (default: "
    "3000)\n"
    "  -t, --timeout=SECONDS  of each task (default: 2)\n"
    "  -a, --all              print every document, not a sample\n"
    "  -h, --help             print this\n";

/* Ends the program unless text is a number of at least least. */
static double read_number(const char *text, double least) {
    char *end;
    double number = strtod(text, &end);

    if (end == text || *end != '\0' || !(number >= least && number < 1e9)) {
        fprintf(stderr, "documents: not a good number: %s\n%s", text, usage);
        exit(2);
    }
    return number;
}

static options read_options(int argc, char **argv) {
    static const struct option known[] = {{"limit", required_argument, NULL, 'n'},
                                          {"timeout", required_argument, NULL, 't'},
                                          {"all", no_argument, NULL, 'a'},
                                          {"help", no_argument, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
    static char usr_share[] = "/usr/share";
    static char *const default_folders[] = {usr_share, NULL};
    options chosen = {default_folders, 3000, PEBBLE_SECONDS(2), false};
    int letter;

    while ((letter = getopt_long(argc, argv, "n:t:ah", known, NULL)) != -1) {
        if (letter == 'n') {
            chosen.limit = (size_t)read_number(optarg, 0);
        } else if (letter == 't') {
            chosen.timeout_ns = PEBBLE_SECONDS(read_number(optarg, 0.001));
        } else if (letter == 'a') {
            chosen.all = true;
        } else {
            fputs(usage, letter == 'h' ? stdout : stderr);
            exit(letter == 'h' ? 0 : 2);
        }
    }
    if (optind < argc)
        chosen.folders = argv + optind;
    return chosen;
}

/* ---- Before ---- */

static void find_documents(const options *chosen, file_list *files) {
    size_t found;

    EXPECT(files_find(files, chosen->folders, true));
    if (files->count == 0) {
        printf("no compressed documents below %s: taking what files there are\n",
               chosen->folders[0]);
        EXPECT(files_find(files, chosen->folders, false));
    }
    found = files->count;
    if (chosen->limit > 0)
        files_thin_out(files, chosen->limit);
    if (found == 0)
        printf("no documents at all: the hostile inputs are among themselves\n");
    else
        printf("%zu documents of %zu, %zu hostile inputs among them\n", files->count,
               found, hostile_input_count);
}

/* A pool whose workers may take 256 MiB each. */
static pebble_pool *new_pool(int *workers) {
    const size_t growth_bytes = 256 * MIB;
    pebble_pool_options settings = PEBBLE_POOL_OPTIONS_INIT;
    pebble_pool_info info = PEBBLE_POOL_INFO_INIT;
    pebble_pool *pool;

    settings.name = "documents";
    settings.initializer = memory_limit_growth;
    settings.initializer_input = &growth_bytes;
    settings.initializer_input_size = sizeof growth_bytes;
    TRY(pebble_process_pool_new(&settings, &pool));
    TRY(pebble_pool_get_info(pool, &info));
    *workers = info.max_workers;
    return pool;
}

static void interrupt(int signal_number, void *pool) {
    (void)signal_number;
    atomic_store(&interrupted, true);
    pebble_pool_stop(pool);
}

/* ---- Checks: each returns false if something is wrong, or when interrupted ---- */

static bool check_hostile(const job *all) {
    size_t right = 0;

    for (size_t i = 0; i < all->count; i++) {
        const job_entry *entry = &all->entries[i];
        if (entry->hostile == NULL)
            continue;
        if (hostile_as_expected(entry->hostile, pebble_future_failure(entry->future)))
            right++;
        else
            printf("WRONG: did not end as it should: %s\n", entry->input);
    }
    printf("hostile inputs: %zu of %zu ended with their reason\n", right,
           hostile_input_count);
    return right == hostile_input_count;
}

/* Does the documents again in the program itself, and compares. */
static bool check_documents(const job *all, int64_t *parse_ns) {
    size_t same = 0, errors = 0, documents = 0;
    uint64_t text_bytes = 0;
    document page;

    *parse_ns = 0;
    for (size_t i = 0; i < all->count && !interrupted; i++) {
        const job_entry *entry = &all->entries[i];
        int64_t start_ns = clock_now_ns();
        int code;

        if (entry->hostile != NULL)
            continue;
        code = document_parse(entry->input, &page);
        *parse_ns += clock_now_ns() - start_ns;
        text_bytes += page.facts.text_size;
        documents++;
        errors += code != 0;
        if (outcome_is(future_outcome(entry->future), code, &page))
            same++;
        else
            printf("WRONG: not as without a pool: %s\n", entry->input);
    }
    if (interrupted)
        return false;
    printf("documents: %zu of %zu as without a pool (%zu of them errors), %.1f MiB of "
           "text\n",
           same, documents, errors, (double)text_bytes / (double)MIB);
    return same == documents;
}

/* Does the documents again in the same pool, now as one map in chunks, and compares. */
static bool check_map(const job *all, pebble_pool *pool, int64_t timeout_ns,
                      int64_t *map_ns) {
    pebble_map_options wanted = PEBBLE_MAP_OPTIONS_INIT;
    pebble_bytes *paths = calloc(all->count, sizeof *paths);
    size_t same = 0;
    pebble_map *map;
    pebble_error error;

    EXPECT(paths != NULL);
    for (size_t i = 0; i < all->count; i++)
        if (all->entries[i].hostile == NULL)
            paths[wanted.count++] =
                (pebble_bytes){all->entries[i].input, strlen(all->entries[i].input) + 1};
    wanted.function = parse_task;
    wanted.inputs = paths;
    wanted.chunk_size = 16;
    wanted.timeout_ns = timeout_ns * 16;

    *map_ns = -clock_now_ns();
    error = pebble_pool_map_with(pool, &wanted, &map);
    if (error == PEBBLE_ERR_NOT_ACTIVE && interrupted) {
        free(paths);
        return false;
    }
    TRY(error);
    for (size_t i = 0; i < all->count; i++) {
        outcome ended = {NULL, NULL};
        const void *data;

        if (all->entries[i].hostile != NULL)
            continue;
        if (pebble_map_next(map, PEBBLE_FOREVER, &data, NULL) == PEBBLE_OK)
            ended.result = data;
        else
            ended.failure = pebble_map_failure(map);
        same += outcome_equal(ended, future_outcome(all->entries[i].future));
    }
    *map_ns += clock_now_ns();
    EXPECT(pebble_map_next(map, 0, NULL, NULL) == PEBBLE_ERR_END);
    pebble_map_unref(map);
    free(paths);
    if (interrupted)
        return false;
    printf("the same again as a map, in chunks of 16: %zu of %zu equal\n", same,
           wanted.count);
    return same == wanted.count;
}

/* The pool is whole if all its workers together answer a roll call: each waits for the
 * others. */
static bool check_whole(pebble_pool *pool, int workers) {
    pebble_future **calls = calloc((size_t)workers, sizeof *calls);
    pebble_pool_info info = PEBBLE_POOL_INFO_INIT;
    int present = 0;

    EXPECT(calls != NULL);
    for (int i = 0; i < workers; i++)
        if (pebble_schedule(pool, roll_call_task, NULL, 0, PEBBLE_SECONDS(10),
                            &calls[i]) != PEBBLE_OK)
            calls[i] = NULL; /* the pool was stopped, or is broken */
    for (int i = 0; i < workers; i++)
        if (calls[i] != NULL &&
            pebble_future_result(calls[i], PEBBLE_FOREVER, NULL, NULL) == PEBBLE_OK)
            present++;

    TRY(pebble_pool_get_info(pool, &info));
    printf("the pool: %d of %d workers answer a roll call together (", present, workers);
    for (int i = 0; i < present && i < PIDS_SHOWN; i++)
        printf("%s%d", i > 0 ? ", " : "", (int)pebble_future_pid(calls[i]));
    printf("%s); %llu tasks ended, %llu workers died\n",
           present > PIDS_SHOWN ? ", .." : "", (unsigned long long)info.ended,
           (unsigned long long)info.worker_deaths);

    for (int i = 0; i < workers; i++)
        pebble_future_unref(calls[i]);
    free(calls);
    return present == workers && pebble_pool_active(pool);
}

/* ---- The whole ---- */

static bool check_all(const job *all, pebble_pool *pool, const options *chosen,
                      int workers) {
    int64_t map_ns = 0, parse_ns = 0;
    bool right = check_hostile(all);

    right = !interrupted && check_map(all, pool, chosen->timeout_ns, &map_ns) && right;
    right = !interrupted && check_documents(all, &parse_ns) && right;
    right = !interrupted && check_whole(pool, workers) && right;
    if (interrupted)
        return false;
    printf("time of the documents, with %d workers:\n", workers);
    printf("%8.3f s in the pool, hostile inputs among them (these until %.3f s)\n",
           clock_seconds(all->documents_ns), clock_seconds(all->run_ns));
    printf("%8.3f s in the pool, as a map\n", clock_seconds(map_ns));
    printf("%8.3f s without a pool\n", clock_seconds(parse_ns));
    return right;
}

int main(int argc, char **argv) {
    const int interrupt_signal = SIGINT;
    options chosen = read_options(argc, argv);
    file_list files = {NULL, 0, 0};
    bool right = false;
    pebble_pool *pool;
    int workers;
    job all;

    find_documents(&chosen, &files);
    files_warm(&files);
    job_init(&all, &files);
    pool = new_pool(&workers);
    EXPECT(roll_call_prepare(workers));
    TRY(pebble_sighandler(&interrupt_signal, 1, interrupt, pool));

    job_run(&all, pool, chosen.timeout_ns);
    if (!interrupted) {
        report_print(&all, chosen.all);
        right = check_all(&all, pool, &chosen, workers);
    }

    TRY(pebble_pool_close(pool));
    TRY(pebble_pool_join(pool, PEBBLE_FOREVER));
    TRY(pebble_sighandler(&interrupt_signal, 1, NULL, NULL));
    pebble_pool_free(pool);
    job_fini(&all);
    files_free(&files);
    if (interrupted)
        fprintf(stderr, "\ninterrupted\n");
    else
        printf("%s\n", right ? "all is right" : "SOMETHING IS WRONG");
    return interrupted ? EXIT_INTERRUPTED : right ? 0 : 1;
}
