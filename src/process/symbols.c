/* Function names of addresses: a reader of ELF symbol tables that allocates nothing and
 * trusts nothing.
 *
 * Every structure is copied out of the image after a check of its range, so that neither
 * a wrong offset nor a wrong alignment matters.
 */
#include "process/symbols.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Longer names are damage. */
#define NAME_SIZE_MAX 65536

/* From this rank on (see symbol_rank) a symbol has a size, and the address is inside. */
#define RANK_SIZED 4

#if UINTPTR_MAX > UINT32_MAX
#define NATIVE_CLASS ELFCLASS64
#else
#define NATIVE_CLASS ELFCLASS32
#endif

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define NATIVE_BYTE_ORDER ELFDATA2LSB
#else
#define NATIVE_BYTE_ORDER ELFDATA2MSB
#endif

/* The type and binding fields are the same in both word sizes. */
#define SYMBOL_TYPE(symbol) ELF64_ST_TYPE((symbol)->st_info)
#define SYMBOL_BINDING(symbol) ELF64_ST_BIND((symbol)->st_info)

/* The section headers of an image, found to be inside it. */
typedef struct section_table {
    const unsigned char *bytes;
    size_t count;
} section_table;

/* ---- Reading checked ---- */

/* size bytes at offset, or NULL if they are not all in the image. */
static const unsigned char *image_range(const symbols_image *image, uint64_t offset,
                                        uint64_t size) {
    if (offset > image->size || size > image->size - offset)
        return NULL;
    return image->bytes + offset;
}

static bool image_header(const symbols_image *image, ElfW(Ehdr) * header) {
    const unsigned char *bytes = image_range(image, 0, sizeof *header);
    if (!bytes)
        return false;
    memcpy(header, bytes, sizeof *header);
    return memcmp(header->e_ident, ELFMAG, SELFMAG) == 0 &&
           header->e_ident[EI_CLASS] == NATIVE_CLASS &&
           header->e_ident[EI_DATA] == NATIVE_BYTE_ORDER;
}

static bool image_sections(const symbols_image *image, section_table *sections) {
    ElfW(Ehdr) header;
    if (!image_header(image, &header) || header.e_shoff == 0 ||
        header.e_shentsize != sizeof(ElfW(Shdr)))
        return false;
    uint64_t count = header.e_shnum;
    if (count ==
        0) { /* Too many for the field: then they are counted in the first one's size. */
        ElfW(Shdr) first;
        const unsigned char *bytes = image_range(image, header.e_shoff, sizeof first);
        if (!bytes)
            return false;
        memcpy(&first, bytes, sizeof first);
        count = first.sh_size;
    }
    if (count > image->size / sizeof(ElfW(Shdr)))
        return false;
    sections->count = (size_t)count;
    sections->bytes = image_range(image, header.e_shoff, count * sizeof(ElfW(Shdr)));
    return sections->bytes != NULL;
}

static bool section_get(const section_table *sections, size_t index,
                        ElfW(Shdr) * section) {
    if (index >= sections->count)
        return false;
    memcpy(section, sections->bytes + index * sizeof *section, sizeof *section);
    return true;
}

/* The bytes of a section that has some in the file. */
static bool section_image(const symbols_image *image, const ElfW(Shdr) * section,
                          symbols_image *contents) {
    if (section->sh_type == SHT_NOBITS)
        return false;
    contents->bytes = image_range(image, section->sh_offset, section->sh_size);
    contents->size = (size_t)section->sh_size;
    return contents->bytes != NULL;
}

/* ---- Files ---- */

int symbols_map(const char *path, symbols_image *image) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return errno;
    struct stat status;
    int error = 0;
    if (fstat(fd, &status) != 0)
        error = errno;
    else if (!S_ISREG(status.st_mode) || status.st_size <= 0)
        error = EINVAL;
    if (!error) {
        size_t size = (size_t)status.st_size;
        void *bytes = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (bytes == MAP_FAILED)
            error = errno;
        else
            *image = (symbols_image){bytes, size};
    }
    close(fd);
    return error;
}

void symbols_unmap(symbols_image *image) {
    munmap((void *)(uintptr_t)image->bytes, image->size);
    *image = (symbols_image){NULL, 0};
}

/* True if a loaded segment holds all of the note: only then may its memory be read. */
static bool note_loaded(const symbols_segment *note, const symbols_segment *headers,
                        size_t header_count) {
    for (size_t i = 0; i < header_count; i++) {
        const symbols_segment *load = &headers[i];
        if (load->p_type == PT_LOAD && note->p_vaddr >= load->p_vaddr &&
            note->p_filesz <= load->p_filesz &&
            note->p_vaddr - load->p_vaddr <= load->p_filesz - note->p_filesz)
            return true;
    }
    return false;
}

bool symbols_match(const symbols_image *image, const symbols_segment *headers,
                   size_t header_count, uintptr_t load_bias) {
    ElfW(Ehdr) header;
    if (!image_header(image, &header) || header.e_phnum != header_count ||
        header.e_phentsize != sizeof(symbols_segment))
        return false;
    size_t size = header_count * sizeof(symbols_segment);
    const unsigned char *bytes = image_range(image, header.e_phoff, size);
    if (!bytes || memcmp(bytes, headers, size) != 0)
        return false;
    for (size_t i = 0; i < header_count; i++) {
        const symbols_segment *note = &headers[i];
        if (note->p_type != PT_NOTE || !note_loaded(note, headers, header_count))
            continue;
        bytes = image_range(image, note->p_offset, note->p_filesz);
        if (!bytes ||
            memcmp(bytes, (const void *)(load_bias + note->p_vaddr), note->p_filesz))
            return false;
    }
    return true;
}

/* ---- Symbols ---- */

static bool symbol_is_function(const ElfW(Sym) * symbol) {
    unsigned type = SYMBOL_TYPE(symbol);
    return (type == STT_FUNC || type == STT_GNU_IFUNC) && symbol->st_shndx != SHN_UNDEF;
}

/* How well a symbol answers for an address: 0 not at all; above that, one with a size is
 * better than one without (hand-written assembly, which may have ended before), and of
 * several names of one function the one that the linker showed to others. */
static unsigned symbol_rank(const ElfW(Sym) * symbol, uint64_t address,
                            const section_table *sections) {
    if (address < symbol->st_value)
        return 0;
    unsigned rank = 1;
    if (symbol->st_size) {
        if (address - symbol->st_value >= symbol->st_size)
            return 0;
        rank = RANK_SIZED;
    } else {
        ElfW(Shdr) section;
        if (!section_get(sections, symbol->st_shndx, &section) ||
            address < section.sh_addr || address - section.sh_addr >= section.sh_size)
            return 0;
    }
    if (SYMBOL_BINDING(symbol) == STB_GLOBAL)
        return rank + 2;
    return SYMBOL_BINDING(symbol) == STB_WEAK ? rank + 1 : rank;
}

static bool lookup_improves(const symbols_lookup *lookup, uint64_t start, unsigned rank) {
    bool sized = rank >= RANK_SIZED;
    if (lookup->rank == 0 || sized != (lookup->rank >= RANK_SIZED))
        return lookup->rank == 0 || sized;
    return start != lookup->start ? start > lookup->start : rank > lookup->rank;
}

/* The name at an offset of a string table; NULL if it is empty or has no end. */
static const char *table_name(const symbols_image *names, uint64_t offset) {
    if (offset >= names->size)
        return NULL;
    const char *name = (const char *)names->bytes + offset;
    size_t left = names->size - (size_t)offset;
    if (!memchr(name, 0, left < NAME_SIZE_MAX ? left : NAME_SIZE_MAX) || !*name)
        return NULL;
    return name;
}

static void table_find(const symbols_image *table, const symbols_image *names,
                       const section_table *sections, symbols_lookup *lookups,
                       size_t lookup_count) {
    for (size_t at = 0; table->size - at >= sizeof(ElfW(Sym)); at += sizeof(ElfW(Sym))) {
        ElfW(Sym) symbol;
        memcpy(&symbol, table->bytes + at, sizeof symbol);
        if (!symbol_is_function(&symbol))
            continue;
        for (size_t i = 0; i < lookup_count; i++) {
            symbols_lookup *lookup = &lookups[i];
            unsigned rank = symbol_rank(&symbol, lookup->address, sections);
            if (!rank || !lookup_improves(lookup, symbol.st_value, rank))
                continue;
            const char *name = table_name(names, symbol.st_name);
            if (name) {
                lookup->name = name;
                lookup->start = symbol.st_value;
                lookup->rank = rank;
            }
        }
    }
}

/* Looks in every symbol table of one type (there is at most one in a sound file). */
static void tables_find(const symbols_image *image, const section_table *sections,
                        uint32_t type, symbols_lookup *lookups, size_t lookup_count) {
    for (size_t i = 0; i < sections->count; i++) {
        ElfW(Shdr) section, name_section;
        symbols_image table, names;
        if (section_get(sections, i, &section) && section.sh_type == type &&
            section.sh_entsize == sizeof(ElfW(Sym)) &&
            section_get(sections, section.sh_link, &name_section) &&
            section_image(image, &section, &table) &&
            section_image(image, &name_section, &names)) {
            table_find(&table, &names, sections, lookups, lookup_count);
            return;
        }
    }
}

void symbols_find(const symbols_image *image, symbols_lookup *lookups,
                  size_t lookup_count) {
    section_table sections;
    if (!image_sections(image, &sections))
        return;
    tables_find(image, &sections, SHT_SYMTAB, lookups, lookup_count);
    for (size_t i = 0; i < lookup_count; i++) {
        if (lookups[i].rank == 0)
            tables_find(image, &sections, SHT_DYNSYM, &lookups[i], 1);
    }
}
