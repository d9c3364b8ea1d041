/* files.h - finds the documents below folders. */
#ifndef DOCUMENTS_FILES_H
#define DOCUMENTS_FILES_H

#include <stdbool.h>
#include <stddef.h>

/* Paths, sorted. All zero is the empty list. */
typedef struct file_list {
    char **paths;
    size_t count;
    size_t capacity;
} file_list;

/* Adds the regular files below the folders: the compressed ones (*.gz), or every one.
 * What cannot be read is left out. Returns false if memory runs out. */
bool files_find(file_list *files, char *const *folders, bool compressed_only);

/* Leaves at most limit files, spread evenly over all of them. */
void files_thin_out(file_list *files, size_t limit);

/* Reads all files once, so that whoever reads them next finds them in memory. */
void files_warm(const file_list *files);

void files_free(file_list *files);

#endif
