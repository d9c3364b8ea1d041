/* Function names of addresses, read from the symbol tables of ELF modules.
 *
 * Made for a crashing process: nothing here allocates, takes a lock or uses stdio, and a
 * damaged file gives no name, not a fault. (A file that shrinks while it is mapped raises
 * SIGBUS; the crash handler, the one user, recovers from that.) C++ names are given as
 * they are in the file, not demangled. Only modules of the machine's own word size and
 * byte order are read.
 */
#ifndef PEBBLE_PROCESS_SYMBOLS_H
#define PEBBLE_PROCESS_SYMBOLS_H

#include <link.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A whole ELF file in memory, of which no byte is trusted. */
typedef struct symbols_image {
    const unsigned char *bytes;
    size_t size;
} symbols_image;

/* A program header: a part of a loaded module. */
typedef ElfW(Phdr) symbols_segment;

/* A question and its answer. */
typedef struct symbols_lookup {
    uint64_t address; /* in: as the module counts, that is without its load bias */
    const char *name; /* in: NULL; out: NULL if it has none, else a string in the image */
    uint64_t start;   /* out: address of the function's first byte */
    unsigned rank;    /* in: 0; how good the answer is, see symbols.c */
} symbols_lookup;

/* Maps a file read-only. Returns 0 or an errno value. */
int symbols_map(const char *path, symbols_image *image);
void symbols_unmap(symbols_image *image);

/* True if the image is of the module that is loaded with these program headers: they and
 * its notes, with the build identifier if there is one, are the same. A file that was
 * replaced since it was loaded would give wrong names. */
bool symbols_match(const symbols_image *image, const symbols_segment *headers,
                   size_t header_count, uintptr_t load_bias);

/* Answers all lookups in one pass over the image's symbols: from .symtab, which has the
 * static functions too, and what that leaves without a name from .dynsym. */
void symbols_find(const symbols_image *image, symbols_lookup *lookups,
                  size_t lookup_count);

#endif
