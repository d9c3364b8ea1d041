/* bench.c - the benchmark program: options, and the way through the rows.
 *
 * Each measurement runs in a fresh process: run.c executes this program again with
 * --measure, see measurement_run(). The contenders of a row are taken in turn, round by
 * round, so that a slow spell of the machine meets all of them. */
#include "bench.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

typedef struct bench_options {
    const char *row; /* NULL for all */
    const char *json_path;
    int rounds;
} bench_options;

static const char usage[] =
    "usage: bench [--row NAME] [--rounds N] [--quick] [--json FILE] [--list]\n"
    "  --row NAME   only this row\n"
    "  --rounds N   measure each contender N times, 1 to 99 (default 3)\n"
    "  --quick      one round, fewer repetitions, the first argument only: for a smoke "
    "test\n"
    "  --json FILE  write every figure to FILE, too\n"
    "  --list       print the names of the rows\n";

static const bench_row *row_find(const char *name) {
    for (size_t i = 0; i < bench_row_count; i++)
        if (!strcmp(bench_rows[i].name, name))
            return &bench_rows[i];
    fprintf(stderr, "bench: no such row: %s (see --list)\n", name);
    exit(2);
}

/* bench --measure ROW ARGUMENT CONTENDER [quick]: what run.c executes. */
static int measurement_run(int count, char **words) {
    if (count < 5)
        return 2;
    const bench_row *row = row_find(words[2]);
    size_t argument = (size_t)strtoul(words[3], NULL, 10);
    size_t contender = (size_t)strtoul(words[4], NULL, 10);
    bench_quick = count > 5;
    if (argument >= row->argument_count || contender >= row->contender_count ||
        !row->contenders[contender].run)
        return 2;
    /* A crashed worker shall not spend its time on a core file. */
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    row->contenders[contender].run(row->arguments[argument].value);
    return 0;
}

static void options_read(int count, char **words, bench_options *options) {
    static const struct option known[] = {{"row", required_argument, NULL, 'r'},
                                          {"rounds", required_argument, NULL, 'n'},
                                          {"quick", no_argument, NULL, 'q'},
                                          {"json", required_argument, NULL, 'j'},
                                          {"list", no_argument, NULL, 'l'},
                                          {"help", no_argument, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
    int option;
    while ((option = getopt_long(count, words, "", known, NULL)) != -1) {
        switch (option) {
        case 'r':
            options->row = optarg;
            break;
        case 'n':
            options->rounds = atoi(optarg);
            break;
        case 'q':
            bench_quick = true;
            break;
        case 'j':
            options->json_path = optarg;
            break;
        case 'l':
            for (size_t i = 0; i < bench_row_count; i++)
                printf("%-10s %s\n", bench_rows[i].name, bench_rows[i].title);
            exit(0);
        default:
            fputs(usage, option == 'h' ? stdout : stderr);
            exit(option == 'h' ? 0 : 2);
        }
    }
    if (optind != count || options->rounds < 0 || options->rounds > bench_rounds_max) {
        fputs(usage, stderr);
        exit(2);
    }
    if (options->rounds == 0)
        options->rounds = bench_quick ? 1 : 3;
}

/* Returns how many measurements failed. */
static size_t row_run(FILE *json, const bench_row *row, int rounds) {
    static bench_results results;
    size_t failures = 0;
    size_t arguments = bench_quick ? 1 : row->argument_count;
    for (size_t argument = 0; argument < arguments; argument++) {
        memset(&results, 0, sizeof results);
        for (int round = 0; round < rounds; round++)
            for (size_t i = 0; i < row->contender_count; i++)
                bench_run_once(row, argument, i, &results);
        bench_print_row(json, row, argument, &results);
        for (size_t i = 0; i < row->contender_count; i++)
            failures += results.failures[i];
    }
    return failures;
}

int main(int count, char **words) {
    if (count > 1 && !strcmp(words[1], "--measure"))
        return measurement_run(count, words);
    bench_options options = {0};
    options_read(count, words, &options);
    const bench_row *only = options.row ? row_find(options.row) : NULL;
    FILE *json = NULL;
    if (options.json_path && !(json = fopen(options.json_path, "we"))) {
        fprintf(stderr, "bench: %s: %s\n", options.json_path, strerror(errno));
        return 2;
    }
    size_t failures = 0;
    bench_print_start(json, options.rounds);
    for (size_t i = 0; i < bench_row_count; i++)
        if (!only || only == &bench_rows[i])
            failures += row_run(json, &bench_rows[i], options.rounds);
    bench_print_end(json);
    if (json && fclose(json)) {
        fprintf(stderr, "bench: %s: %s\n", options.json_path, strerror(errno));
        return 2;
    }
    return failures ? 1 : 0;
}
