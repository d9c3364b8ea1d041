/* document.h - reads a manual page or another document and tells what is in it.
 *
 * Knows nothing of pools: the same function runs in a worker and in the program itself.
 */
#ifndef DOCUMENTS_DOCUMENT_H
#define DOCUMENTS_DOCUMENT_H

#include <stdint.h>

/* What is counted in a document. */
typedef struct document_facts {
    uint64_t text_size; /* bytes, decompressed */
    uint64_t lines;
    uint64_t words;
    uint64_t longest_line;
    uint64_t requests; /* the last three in manual pages only */
    uint64_t macros;
    uint64_t sections;
    uint32_t crc32;
    uint32_t title_size;
} document_facts;

typedef struct document {
    document_facts facts;
    char title[1024]; /* what its NAME section says, or its first line */
    char error[256];  /* why it could not be read */
} document;

/* Reads, decompresses and parses a file. Returns 0, or an errno code and page->error. */
int document_parse(const char *path, document *page);

#endif
