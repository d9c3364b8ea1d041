/* files.c - finds the documents below folders. */
#include "files.h"

#include <fcntl.h>
#include <fts.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool is_compressed(const char *name) {
    size_t size = strlen(name);

    return size > 3 && strcmp(name + size - 3, ".gz") == 0;
}

static bool file_add(file_list *files, const char *path) {
    char *copy = strdup(path);

    if (files->count == files->capacity) {
        size_t capacity = files->capacity == 0 ? 1024 : files->capacity * 2;
        char **paths = realloc(files->paths, capacity * sizeof *paths);
        if (paths != NULL) {
            files->paths = paths;
            files->capacity = capacity;
        }
    }
    if (copy == NULL || files->count == files->capacity) {
        free(copy);
        return false;
    }
    files->paths[files->count++] = copy;
    return true;
}

static int path_compare(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

bool files_find(file_list *files, char *const *folders, bool compressed_only) {
    FTS *walk = fts_open(folders, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
    FTSENT *entry;
    bool enough_memory = walk != NULL;

    while (enough_memory && (entry = fts_read(walk)) != NULL)
        if (entry->fts_info == FTS_F && entry->fts_statp->st_size > 0 &&
            (!compressed_only || is_compressed(entry->fts_name)))
            enough_memory = file_add(files, entry->fts_path);
    if (walk != NULL)
        fts_close(walk);
    if (files->count > 0)
        qsort(files->paths, files->count, sizeof *files->paths, path_compare);
    return enough_memory;
}

void files_thin_out(file_list *files, size_t limit) {
    size_t kept = 0;

    if (files->count <= limit)
        return;
    for (size_t i = 0; i < files->count; i++) {
        if (i == kept * files->count / limit)
            files->paths[kept++] = files->paths[i];
        else
            free(files->paths[i]);
    }
    files->count = kept;
}

void files_warm(const file_list *files) {
    static char buffer[64 * 1024];

    for (size_t i = 0; i < files->count; i++) {
        int file = open(files->paths[i], O_RDONLY | O_CLOEXEC);
        if (file < 0)
            continue;
        while (read(file, buffer, sizeof buffer) > 0)
            continue;
        close(file);
    }
}

void files_free(file_list *files) {
    for (size_t i = 0; i < files->count; i++)
        free(files->paths[i]);
    free(files->paths);
    *files = (file_list){NULL, 0, 0};
}
