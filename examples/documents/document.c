/* document.c - reads a manual page or another document and tells what is in it.
 *
 * A manual page is troff source. A line that starts with a full stop or an apostrophe is
 * a request (small letters, troff's own) or a macro (capitals); .SH or .Sh starts a
 * section. All other lines are text. The title is the text of the first section, which is
 * NAME.
 */
#include "document.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

/* A piece of the text. */
typedef struct slice {
    const char *at;
    size_t size;
} slice;

static __attribute__((format(printf, 3, 4))) int fail(document *page, int code,
                                                      const char *format, ...) {
    va_list args;

    va_start(args, format);
    vsnprintf(page->error, sizeof page->error, format, args);
    va_end(args);
    return code;
}

/* ---- Reading ---- */

/* Reads to the end of the file into *text, to be freed also after an error. */
static int read_all(gzFile file, document *page, char **text, size_t *text_size) {
    size_t capacity = 64 * 1024, size = 0;
    int got, zlib_error;

    do {
        char *larger = realloc(*text, capacity);
        if (larger == NULL)
            return fail(page, ENOMEM, "out of memory for %zu bytes", capacity);
        *text = larger;
        got = gzread(file, *text + size, (unsigned)(capacity - size));
        if (got > 0)
            size += (size_t)got;
        if (size == capacity)
            capacity *= 2;
    } while (got > 0);

    gzerror(file, &zlib_error);
    if (zlib_error != Z_OK)
        return fail(page, EIO, "bad compressed data after %zu bytes", size);
    *text_size = size;
    return 0;
}

static int read_file(const char *path, document *page, char **text, size_t *text_size) {
    gzFile file = gzopen(path, "re");
    int code;

    if (file == NULL) {
        code = errno;
        return fail(page, code, "cannot open it: %s", strerror(code));
    }
    code = read_all(file, page, text, text_size);
    gzclose(file);
    return code;
}

/* ---- The title ---- */

/* The length of the troff escape that text starts with: \-, \fB, \f(CW, \f[CW], \(em. */
static size_t escape_size(slice text) {
    const char *argument = text.at + 2;
    size_t size = 2;
    const char *end;

    if (text.size > 1 && text.at[1] == '(')
        size = 4;
    else if (text.size > 2 && strchr("f*s", text.at[1]) != NULL) {
        if (*argument == '(')
            size = 5;
        else if (*argument == '[' && (end = memchr(argument, ']', text.size - 2)) != NULL)
            size = (size_t)(end - text.at) + 1;
        else
            size = 3;
    }
    return size < text.size ? size : text.size;
}

static void title_put(document *page, char c) {
    uint32_t *size = &page->facts.title_size;
    bool space = isspace((unsigned char)c) || iscntrl((unsigned char)c);

    if (*size + 1 >= sizeof page->title)
        return;
    if (!space)
        page->title[(*size)++] = c;
    else if (*size > 0 && page->title[*size - 1] != ' ')
        page->title[(*size)++] = ' ';
}

/* Appends text to the title without its escapes and quotes. */
static void title_add(document *page, slice text) {
    while (text.size > 0) {
        size_t taken = 1;
        if (text.at[0] == '\\') {
            taken = escape_size(text);
            if (taken == 2 && strchr("- ", text.at[1]) != NULL)
                title_put(page, text.at[1]);
        } else if (text.at[0] != '"') {
            title_put(page, text.at[0]);
        }
        text.at += taken;
        text.size -= taken;
    }
    title_put(page, ' ');
}

static void title_end(document *page) {
    uint32_t *size = &page->facts.title_size;

    while (*size > 0 && page->title[*size - 1] == ' ')
        (*size)--;
    page->title[*size] = '\0';
}

/* ---- Lines ---- */

static uint64_t count_words(slice line) {
    uint64_t words = 0;
    bool in_word = false;

    for (size_t i = 0; i < line.size; i++) {
        bool space = isspace((unsigned char)line.at[i]);
        words += !space && !in_word;
        in_word = !space;
    }
    return words;
}

/* Splits ".SH NAME" into the name "SH" and the rest " NAME". */
static slice split_name(slice line, slice *rest) {
    size_t start = 1, end;

    while (start < line.size && (line.at[start] == ' ' || line.at[start] == '\t'))
        start++;
    end = start;
    while (end < line.size && isalnum((unsigned char)line.at[end]))
        end++;
    *rest = (slice){line.at + end, line.size - end};
    return (slice){line.at + start, end - start};
}

static bool name_is(slice name, const char *wanted) {
    return name.size == strlen(wanted) && memcmp(name.at, wanted, name.size) == 0;
}

/* A line of a manual page that starts with a full stop or an apostrophe. */
static void parse_control_line(document *page, slice line) {
    document_facts *facts = &page->facts;
    slice rest, name = split_name(line, &rest);

    if (name.size == 0)
        return; /* a comment */
    if (islower((unsigned char)name.at[0])) {
        facts->requests++;
        return;
    }
    facts->macros++;
    if (name_is(name, "SH") || name_is(name, "Sh"))
        facts->sections++;
    else if (facts->sections == 1 && name_is(name, "Nd"))
        title_add(page, (slice){"-", 1});
    if (facts->sections == 1 && !name_is(name, "SH") && !name_is(name, "Sh"))
        title_add(page, rest);
}

static void parse_line(document *page, slice line, bool is_manual_page) {
    document_facts *facts = &page->facts;
    bool is_control = is_manual_page && line.size > 0 && strchr(".'", line.at[0]) != NULL;

    facts->lines++;
    if (line.size > facts->longest_line)
        facts->longest_line = line.size;
    if (is_control) {
        parse_control_line(page, line);
        return;
    }
    facts->words += count_words(line);
    if (is_manual_page ? facts->sections == 1 : facts->title_size == 0)
        title_add(page, line);
}

int document_parse(const char *path, document *page) {
    bool is_manual_page = strstr(path, "/man/") != NULL;
    char *text = NULL;
    size_t text_size = 0;
    int code;

    memset(page, 0, sizeof *page);
    code = read_file(path, page, &text, &text_size);
    if (code == 0) {
        page->facts.text_size = text_size;
        page->facts.crc32 = (uint32_t)crc32_z(0, (unsigned char *)text, text_size);
        for (const char *at = text, *end = text + text_size, *line_end; at < end;
             at = line_end + 1) {
            line_end = memchr(at, '\n', (size_t)(end - at));
            if (line_end == NULL)
                line_end = end;
            parse_line(page, (slice){at, (size_t)(line_end - at)}, is_manual_page);
        }
        title_end(page);
    }
    free(text);
    return code;
}
