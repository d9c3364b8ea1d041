/* Native crash backtraces: a worker that dies by SIGSEGV, SIGBUS, SIGILL, SIGFPE or
 * SIGABRT leaves in shared memory where it was, and the program makes lines of text of
 * that. */
#ifndef PEBBLE_PROCESS_CRASH_H
#define PEBBLE_PROCESS_CRASH_H

#include <stdatomic.h>
#include <stdint.h>

#define CRASH_REPORT_SIZE 16384
#define CRASH_FRAMES 64
#define CRASH_STRINGS_SIZE (CRASH_REPORT_SIZE - 16 - CRASH_FRAMES * 32)

/* How much of a frame is known. Grows; each value is stored by release, after what it
 * stands for. */
typedef enum crash_known {
    CRASH_KNOWN_NOTHING,
    CRASH_KNOWN_ADDRESS,
    CRASH_KNOWN_MODULE,
    CRASH_KNOWN_FUNCTION
} crash_known;

typedef struct crash_frame {
    _Atomic uint32_t known;   /* a crash_known */
    uint16_t module_name;     /* where it begins in strings */
    uint16_t function_name;   /* the same */
    uint64_t address;         /* of the faulting instruction; of a caller: its next one */
    uint64_t module_offset;   /* address, as the module counts */
    uint64_t function_offset; /* address minus the function's first byte */
} crash_frame;

/* In shared memory that the worker writes and the program reads. All zero: no crash. The
 * frames are the innermost first, and end before one of which nothing is known. */
typedef struct crash_report {
    _Atomic uint32_t signal; /* what the process dies of; set before all else */
    uint32_t unused;
    uint64_t fault_address; /* as siginfo_t has it, for SIGSEGV the one accessed; or 0 */
    crash_frame frames[CRASH_FRAMES];
    char strings[CRASH_STRINGS_SIZE]; /* NUL-terminated names */
} crash_report;

/* Does what crash_handler_install() needs and a fork inherits: called in the process that
 * forks the workers, it makes their start shorter; not needed otherwise. Not beside
 * itself. Returns 0 or ENOMEM. */
int crash_handler_prepare(void);

/* Has this process report into *report, which must be all zero and is kept, if it
 * crashes. For a worker's main thread; may be repeated. Sets the handlers of the five
 * signals and gives the calling thread an alternate signal stack, so that a stack
 * overflow is reported too (in other threads: every crash but that one). The memory of
 * report is not touched before a crash. A child that the worker forks reports nothing.
 * outermost is the frame (__builtin_frame_address(0)) of the function that calls tasks: a backtrace
 * of this thread ends before it.
 * Returns 0 or ENOMEM. */
int crash_handler_install(crash_report *report, const void *outermost);

/* The backtrace as lines "#0 function+0x1f (module)", or "#1 0x7f3c5a0 (module+0x5a0)"
 * where the function has no name, or "#2 0x7f3c5a0" outside of all modules, the innermost
 * first; only printable characters. C++ names are not demangled. *report is not trusted:
 * whatever is in it, this is safe.
 *   signal  out, may be NULL: the signal that the report names, also with no text; or 0.
 *           How the process died is what its wait status says: if that names another
 *           signal, or none, the report is not of its death
 * Returns NULL if there is none, or no memory for it; free it with os_free(). */
char *crash_report_text(const crash_report *report, int *signal);

#endif
