/* report.c - what the driver prints: tables for people, JSON for programs. */
#include "bench.h"

#include <math.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

static size_t targets_reached, targets_missed;
static bool json_first_row;

static void value_format(char *text, size_t size, double value, bench_unit unit) {
    switch (unit) {
    case BENCH_PER_SECOND:
        snprintf(text, size, value >= 1e6 ? "%.2f M/s" : "%.1f k/s",
                 value >= 1e6 ? value / 1e6 : value / 1e3);
        break;
    case BENCH_NANOSECONDS:
        if (fabs(value) >= 1e6)
            snprintf(text, size, "%.2f ms", value / 1e6);
        else if (fabs(value) >= 1e3)
            snprintf(text, size, "%.2f us", value / 1e3);
        else
            snprintf(text, size, "%.0f ns", value);
        break;
    case BENCH_BYTES_PER_SECOND:
        snprintf(text, size, "%.2f GB/s", value / 1e9);
        break;
    case BENCH_BYTES:
        snprintf(text, size, "%.0f bytes", value);
        break;
    case BENCH_COUNT:
        snprintf(text, size, "%.0f", value);
        break;
    }
}

/* False if the contender has no figure on this line. */
static bool figure_median(const bench_results *results, size_t line, size_t contender,
                          double *median) {
    double sorted[bench_rounds_max];
    size_t count = results->counts[line][contender];
    if (count == 0)
        return false;
    memcpy(sorted, results->samples[line][contender], count * sizeof *sorted);
    *median = bench_median(sorted, count);
    return true;
}

static size_t peer_find(const bench_row *row, const char *name) {
    for (size_t i = 0; i < row->contender_count; i++)
        if (!strcmp(row->contenders[i].name, name))
            return i;
    return row->contender_count;
}

/* What is compared with the target's limit; false if a figure for it is missing. */
static bool target_value(const bench_row *row, const bench_results *results, size_t line,
                         const bench_target *target, double *value) {
    double peer;
    if (!figure_median(results, line, 0, value))
        return false;
    if (!target->peer)
        return true;
    size_t index = peer_find(row, target->peer);
    if (index == row->contender_count || !figure_median(results, line, index, &peer))
        return false;
    *value /= peer;
    return true;
}

static void target_text(char *text, size_t size, const bench_target *target,
                        bench_unit unit) {
    char limit[32];
    const char *how = target->at_most ? "at most" : "at least";
    value_format(limit, sizeof limit, target->limit, unit);
    if (target->peer)
        snprintf(text, size, "%s %g x %s", how, target->limit, target->peer);
    else
        snprintf(text, size, "%s %s", how, limit);
}

static bool target_is_reached(const bench_target *target, double value) {
    return target->at_most ? value <= target->limit : value >= target->limit;
}

static void target_print(const bench_row *row, const bench_results *results, size_t line,
                         const bench_target *target) {
    char text[96], value_text[32] = "no figure";
    double value;
    const char *verdict = "not measured";
    bench_unit unit = row->lines[line].unit;
    target_text(text, sizeof text, target, unit);
    if (target_value(row, results, line, target, &value)) {
        bool reached = target_is_reached(target, value);
        verdict = reached ? "reached" : "NOT REACHED";
        *(reached ? &targets_reached : &targets_missed) += 1;
        if (target->peer)
            snprintf(value_text, sizeof value_text, "%.2f x", value);
        else
            value_format(value_text, sizeof value_text, value, unit);
    }
    printf("    target: %-34s %12s   %s\n", text, value_text, verdict);
}

/* "lowest .. highest" of the rounds, empty if there is but one. */
static void spread_format(char *text, size_t size, const bench_results *results,
                          size_t line, size_t contender, bench_unit unit) {
    const double *samples = results->samples[line][contender];
    size_t count = results->counts[line][contender];
    double lowest = samples[0], highest = samples[0];
    char lowest_text[32], highest_text[32];
    for (size_t i = 1; i < count; i++) {
        lowest = fmin(lowest, samples[i]);
        highest = fmax(highest, samples[i]);
    }
    value_format(lowest_text, sizeof lowest_text, lowest, unit);
    value_format(highest_text, sizeof highest_text, highest, unit);
    if (count > 1)
        snprintf(text, size, "%s .. %s", lowest_text, highest_text);
    else
        *text = 0;
}

static void contender_print(const bench_row *row, const bench_results *results,
                            size_t line, size_t contender) {
    char value_text[32], ratio_text[32] = "", spread_text[80];
    bench_unit unit = row->lines[line].unit;
    double ours, value;
    const char *name = row->contenders[contender].name;
    if (!row->contenders[contender].run) {
        printf("    %-42s %12s\n", name, "not built in");
    } else if (figure_median(results, line, contender, &value)) {
        value_format(value_text, sizeof value_text, value, unit);
        spread_format(spread_text, sizeof spread_text, results, line, contender, unit);
        if (contender > 0 && figure_median(results, line, 0, &ours) && value > 0)
            snprintf(ratio_text, sizeof ratio_text, "%.2f x", ours / value);
        printf("    %-42s %12s %11s   %s\n", name, value_text, ratio_text, spread_text);
    } else if (results->failures[contender]) {
        printf("    %-42s %12s\n", name, "failed");
    }
}

static void json_string(FILE *json, const char *text) {
    fputc('"', json);
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            fputc('\\', json);
        fputc(*text, json);
    }
    fputc('"', json);
}

static void json_contender(FILE *json, const bench_row *row, const bench_results *results,
                           size_t line, size_t contender) {
    double median;
    fputs(contender ? ",\n     {\"name\": " : "\n     {\"name\": ", json);
    json_string(json, row->contenders[contender].name);
    fprintf(json, ", \"built\": %s, \"failures\": %zu, \"samples\": [",
            row->contenders[contender].run ? "true" : "false",
            results->failures[contender]);
    for (size_t i = 0; i < results->counts[line][contender]; i++)
        fprintf(json, "%s%.9g", i ? ", " : "", results->samples[line][contender][i]);
    if (figure_median(results, line, contender, &median))
        fprintf(json, "], \"median\": %.9g}", median);
    else
        fputs("], \"median\": null}", json);
}

static void json_target(FILE *json, const bench_row *row, const bench_results *results,
                        size_t line, const bench_target *target) {
    double value;
    fprintf(json, "{\"at_most\": %s, \"limit\": %.9g, \"peer\": ",
            target->at_most ? "true" : "false", target->limit);
    if (target->peer)
        json_string(json, target->peer);
    else
        fputs("null", json);
    if (target_value(row, results, line, target, &value))
        fprintf(json, ", \"value\": %.9g, \"reached\": %s}", value,
                target_is_reached(target, value) ? "true" : "false");
    else
        fputs(", \"value\": null, \"reached\": null}", json);
}

static void json_line(FILE *json, const bench_row *row, size_t argument, size_t line,
                      const bench_results *results) {
    static const char *const units[] = {"1/s", "ns", "bytes/s", "bytes", "count"};
    fputs(json_first_row ? "\n  {\"row\": " : ",\n  {\"row\": ", json);
    json_first_row = false;
    json_string(json, row->name);
    fprintf(json, ", \"argument\": %ld, \"figure\": ", row->arguments[argument].value);
    json_string(json, row->lines[line].key);
    fprintf(json, ", \"unit\": \"%s\",\n   \"contenders\": [",
            units[row->lines[line].unit]);
    for (size_t i = 0; i < row->contender_count; i++)
        json_contender(json, row, results, line, i);
    fputs("],\n   \"targets\": [", json);
    for (size_t i = 0; i < row->lines[line].target_count; i++) {
        fputs(i ? ", " : "", json);
        json_target(json, row, results, line, &row->lines[line].targets[i]);
    }
    fputs("]}", json);
}

void bench_print_start(FILE *json, int rounds) {
    struct utsname host = {0};
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    uname(&host);
    printf("Linux %s, %ld processors, %d workers, median of %d round%s, each measurement "
           "in a "
           "fresh process.\nColumns: median, ours / peer, lowest .. highest round.\n",
           host.release, processors, bench_worker_count, rounds, rounds == 1 ? "" : "s");
#ifndef __OPTIMIZE__
    puts("Built without optimization: these figures say little.");
#endif
    json_first_row = true;
    if (json)
        fprintf(
            json,
            "{\"time\": %lld, \"kernel\": \"%s\", \"processors\": %ld, \"rounds\": %d,\n"
            " \"figures\": [",
            (long long)time(NULL), host.release, processors, rounds);
}

void bench_print_row(FILE *json, const bench_row *row, size_t argument,
                     const bench_results *results) {
    printf("\n%s: %s: %s\n", row->name, row->title, row->arguments[argument].text);
    for (size_t line = 0; line < row->line_count; line++) {
        printf("  %s\n", row->lines[line].title);
        for (size_t i = 0; i < row->contender_count; i++)
            contender_print(row, results, line, i);
        for (size_t i = 0; i < row->lines[line].target_count; i++)
            target_print(row, results, line, &row->lines[line].targets[i]);
        if (json)
            json_line(json, row, argument, line, results);
    }
    fflush(stdout);
}

void bench_print_end(FILE *json) {
    printf("\n%zu targets reached, %zu not reached\n", targets_reached, targets_missed);
    if (json)
        fputs("\n]}\n", json);
}
