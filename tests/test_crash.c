/* Native crash backtraces: processes that crash in every way, and what is reported of
 * them; the reader given damaged reports; the reader of ELF files given damaged files. */
#include "platform/platform.h"
#include "process/crash.h"
#include "process/symbols.h"

#include <errno.h>
#include <link.h>
#include <pthread.h>
#include <search.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "support.h"

#define TIME_LIMIT_S 120

/* What crashes on purpose: no sanitizer sees it first, and it has a frame of its own. */
#if defined(__clang__)
#define NO_CLONE
#else
#define NO_CLONE __attribute__((noclone))
#endif
#define CRASHES                                                                          \
    NO_CLONE __attribute__((noinline, no_sanitize("address", "undefined", "thread")))

/* Ends a function that is not to make its last call a jump. */
#define STAY __asm__ volatile("")

static crash_report *shared_report;

static crash_report *report_new(void) {
    crash_report *report = mmap(NULL, sizeof *report, PROT_READ | PROT_WRITE,
                                MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(report, MAP_FAILED);
    return report;
}

static int report_setup(void **state) {
    (void)state;
    shared_report = report_new();
    return 0;
}

static int report_teardown(void **state) {
    (void)state;
    return munmap(shared_report, sizeof *shared_report);
}

/* Runs body in a process with the handler, returns its wait status. */
static int worker_run(void (*body)(void)) {
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        for (int i = 1; i < 32; i++)
            signal(i, SIG_DFL); /* cmocka's and the sanitizers' */
        if (crash_handler_install(shared_report, (void *)UINTPTR_MAX) != 0)
            _exit(99);
        body();
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

/* Runs body, which must die by the signal, as the report says too; returns its text. */
static char *crash_run(void (*body)(void), int expected_signal) {
    int status = worker_run(body);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), expected_signal);
    int signal;
    char *text = crash_report_text(shared_report, &signal);
    assert_int_equal(signal, expected_signal);
    assert_non_null(text);
    fputs(text, stdout); /* print_message() cuts it */
    assert_int_equal(strncmp(text, "#0 ", 3), 0);
    return text;
}

/* The number of the first line that begins with this name after its number, or -1. */
static int line_of(const char *text, const char *name) {
    int number = 0;
    for (const char *line = text; *line; number++) {
        const char *function = strchr(line, ' ') + 1;
        size_t size = strlen(name);
        if (strncmp(function, name, size) == 0 && strchr("+.", function[size]))
            return number;
        line = strchr(line, '\n') + 1;
    }
    return -1;
}

/* Two functions, the second called by the first. */
static void assert_calls(const char *text, const char *inner, const char *outer) {
    assert_true(line_of(text, inner) >= 0);
    assert_int_equal(line_of(text, outer), line_of(text, inner) + 1);
}

/* ---- Ways to crash ---- */

static int *volatile null_pointer;

CRASHES static void write_null(void) {
    *null_pointer = 1;
    STAY;
}

CRASHES static void write_null_caller(void) {
    write_null();
    STAY;
}

static void test_null_write(void **state) {
    (void)state;
    char *text = crash_run(write_null_caller, SIGSEGV);
    assert_int_equal(line_of(text, "write_null"), 0);
    assert_calls(text, "write_null", "write_null_caller");
    assert_calls(text, "write_null_caller", "worker_run");
    assert_true(line_of(text, "main") > 0);
    assert_non_null(strstr(text, "libc.so.6"));
    assert_null(strstr(text, "handle_crash"));
    assert_int_equal(shared_report->fault_address, 0);
    os_free(text);
}

CRASHES static void write_address(void) {
    *(volatile char *)(uintptr_t)0x1238 = 1;
    STAY;
}

static void test_fault_address(void **state) {
    (void)state;
    os_free(crash_run(write_address, SIGSEGV));
    assert_int_equal(shared_report->fault_address, 0x1238);
}

CRASHES static void aborting(void) {
    abort();
}

CRASHES static void aborting_caller(void) {
    aborting();
    STAY;
}

static void test_abort(void **state) {
    (void)state;
    char *text = crash_run(aborting_caller, SIGABRT);
    assert_in_range(line_of(text, "abort"), 0, line_of(text, "aborting") - 1);
    assert_calls(text, "aborting", "aborting_caller");
    os_free(text);
}

CRASHES static void divide(void) {
#if defined(__x86_64__)
    __asm__ volatile("xorl %%ecx, %%ecx\n\tdivl %%ecx" ::: "eax", "ecx", "edx");
#else
    raise(SIGFPE); /* the processor gives a result */
#endif
}

CRASHES static void divide_caller(void) {
    divide();
    STAY;
}

static void test_division(void **state) {
    (void)state;
    char *text = crash_run(divide_caller, SIGFPE);
    assert_calls(text, "divide", "divide_caller");
    os_free(text);
}

CRASHES static void touch_past_end(void) {
    FILE *file = tmpfile();
    volatile char *memory =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(file), 0);
    *memory = 1;
    STAY;
}

static void test_bus_error(void **state) {
    (void)state;
    char *text = crash_run(touch_past_end, SIGBUS);
    assert_int_equal(line_of(text, "touch_past_end"), 0);
    os_free(text);
}

CRASHES static void trap(void) {
#if defined(__aarch64__)
    __asm__ volatile("udf #0");
#else
    __builtin_trap();
#endif
}

static void test_illegal_instruction(void **state) {
    (void)state;
    char *text = crash_run(trap, SIGILL);
    assert_int_equal(line_of(text, "trap"), 0);
    os_free(text);
}

CRASHES static int recurse(volatile int *depth) {
    volatile char block[1024];
    block[0] = (char)++*depth;
    return *depth > 0 ? recurse(depth) + block[0] : 0;
}

CRASHES static void overflow_stack(void) {
    int depth = 0;
    recurse(&depth);
    STAY;
}

static void test_stack_overflow(void **state) {
    (void)state;
    char *text = crash_run(overflow_stack, SIGSEGV);
    assert_int_equal(line_of(text, "recurse"), 0);
    assert_non_null(strstr(text, "\n#1 recurse"));
    assert_non_null(strstr(text, "\n#63 recurse"));
    assert_null(strstr(text, "\n#64"));
    os_free(text);
}

static void (*volatile wild_function)(void);

CRASHES static void call_wild(void) {
    wild_function();
    STAY;
}

CRASHES static void call_wild_caller(void) {
    call_wild();
    STAY;
}

static void test_wild_calls(void **state) {
    (void)state;
    static char data[64];
    /* Nothing there; the null page; not executable; no address at all. */
    const uintptr_t wild[] = {0x4141, 0, (uintptr_t)data, UINTPTR_MAX / 3 * 2};
    for (size_t i = 0; i < sizeof wild / sizeof wild[0]; i++) {
        wild_function = (void (*)(void))wild[i];
        memset(shared_report, 0, sizeof *shared_report);
        char *text = crash_run(call_wild_caller, SIGSEGV);
        assert_calls(text, "call_wild", "call_wild_caller");
        assert_calls(text, "call_wild_caller", "worker_run");
        /* A call of no address at all faults at the call instruction. */
        assert_in_range(line_of(text, "call_wild"), 0, 1);
        os_free(text);
    }
}

CRASHES static int compare_crashing(const void *a, const void *b) {
    (void)a;
    (void)b;
    write_null();
    STAY;
    return 0;
}

CRASHES static void find_crashing(void) {
    int numbers[] = {2, 1};
    size_t count = 2;
    lfind(&numbers[1], numbers, &count, sizeof numbers[0], compare_crashing);
    STAY;
}

static void test_through_a_library(void **state) {
    (void)state;
    char *text = crash_run(find_crashing, SIGSEGV);
    assert_calls(text, "write_null", "compare_crashing");
    const char *library = strstr(text, "libc.so.6");
    const char *caller = strstr(text, "find_crashing");
    assert_non_null(library);
    assert_non_null(caller);
    assert_true(library < caller);
    os_free(text);
}

CRASHES static void read_clock(void) {
    clock_gettime(CLOCK_MONOTONIC, (struct timespec *)(uintptr_t)0x1238);
    STAY;
}

static void test_in_the_kernels_module(void **state) {
    (void)state;
    int status = worker_run(read_clock);
    if (WIFEXITED(status))
        skip(); /* here clock_gettime is a system call */
    int signal;
    char *text = crash_report_text(shared_report, &signal);
    fputs(text, stdout); /* print_message() cuts it */
    assert_int_equal(signal, SIGSEGV);
    assert_true(line_of(text, "read_clock") > 0);
    assert_non_null(strstr(text, "vdso"));
    os_free(text);
}

CRASHES static void corrupt_heap(void) {
    char *first = malloc(24);
    char *volatile second = malloc(24);
    memset(first, 0xff, 24);
    for (volatile char *byte = first; byte < first + 4096; byte++)
        *byte = (char)0xff;
    free(second);
    free(malloc(5000));
    STAY;
}

static void test_corrupt_heap(void **state) {
    (void)state;
    if (WITH_ADDRESS_SANITIZER || WITH_THREAD_SANITIZER)
        skip(); /* they have heaps of their own */
    char *text = crash_run(corrupt_heap, SIGABRT);
    assert_true(line_of(text, "corrupt_heap") > 0);
    os_free(text);
}

CRASHES static void crash_without_memory(void) {
    struct rlimit limit = {1, 1};
    setrlimit(RLIMIT_AS, &limit);
    write_null();
    STAY;
}

static void test_no_address_space(void **state) {
    (void)state;
    char *text = crash_run(crash_without_memory, SIGSEGV);
    /* No file can be mapped: no names, but addresses in modules. */
    assert_int_equal(strncmp(text, "#0 0x", 5), 0);
    assert_non_null(strstr(text, "\n#1 0x"));
    assert_non_null(strstr(text, program_invocation_short_name));
    assert_null(strstr(text, "write_null"));
    os_free(text);
}

CRASHES static void crash_without_files(void) {
    struct rlimit limit = {0, 0};
    setrlimit(RLIMIT_NOFILE, &limit);
    write_null();
    STAY;
}

static void test_no_descriptors(void **state) {
    (void)state;
    char *text = crash_run(crash_without_files, SIGSEGV);
    assert_non_null(strstr(text, program_invocation_short_name));
    os_free(text);
}

/* ---- Crashes of the handler, and of several ---- */

CRASHES static void smash_stack(void) {
    volatile uintptr_t *frame = __builtin_frame_address(0);
    for (int i = 0; i < 8; i++)
        frame[i] = (uintptr_t)0x4141414141414140;
    write_null();
    STAY;
}

static void test_smashed_stack(void **state) {
    (void)state;
    char *text = crash_run(smash_stack, SIGSEGV);
    assert_int_equal(line_of(text, "write_null"), 0);
    assert_calls(text, "write_null", "smash_stack");
    os_free(text);
}

CRASHES static void abort_without_report(void) {
    mprotect(shared_report, sizeof *shared_report, PROT_NONE);
    abort();
}

static void test_fault_in_every_step(void **state) {
    (void)state;
    int status = worker_run(abort_without_report);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGABRT);
    assert_null(crash_report_text(shared_report, NULL));
}

static pthread_barrier_t barrier;

static int hold_loader(struct dl_phdr_info *module, size_t size, void *context) {
    (void)module;
    (void)size;
    (void)context;
    pthread_barrier_wait(&barrier);
    for (;;)
        pause();
    return 0;
}

static void *hold_loader_thread(void *context) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all,
                    NULL); /* so that the main thread must see the watchdog */
    dl_iterate_phdr(hold_loader, context);
    return NULL;
}

CRASHES static void crash_with_loader_locked(void) {
    pthread_t thread;
    sigset_t alarm_set;
    sigemptyset(&alarm_set);
    sigaddset(&alarm_set, SIGALRM);
    pthread_barrier_init(&barrier, NULL, 2);
    pthread_create(&thread, NULL, hold_loader_thread, NULL);
    pthread_barrier_wait(&barrier);
    signal(SIGALRM, SIG_IGN);
    pthread_sigmask(SIG_BLOCK, &alarm_set, NULL);
    write_null();
    STAY;
}

static void test_hanging_handler(void **state) {
    (void)state;
    if (WITH_THREAD_SANITIZER)
        skip(); /* it holds back SIGALRM while it waits for the loader's lock */
    char *text = crash_run(crash_with_loader_locked, SIGSEGV);
    assert_int_equal(strncmp(text, "#0 0x", 5), 0);
    os_free(text);
}

static void *crash_thread(void *context) {
    (void)context;
    pthread_barrier_wait(&barrier);
    write_null();
    STAY;
    return NULL;
}

static void crash_in_threads(void) {
    pthread_t threads[4];
    pthread_barrier_init(&barrier, NULL, 5);
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, crash_thread, NULL);
    pthread_barrier_wait(&barrier);
    for (;;)
        pause();
}

static void test_many_threads_crash(void **state) {
    (void)state;
    char *text = crash_run(crash_in_threads, SIGSEGV);
    assert_calls(text, "write_null", "crash_thread");
    os_free(text);
}

static void crash_in_child(void) {
    pid_t pid = fork();
    if (pid == 0)
        write_null();
    int status = 0;
    waitpid(pid, &status, 0);
    _exit(WIFSIGNALED(status) ? WTERMSIG(status) : 98);
}

static void test_child_of_the_worker(void **state) {
    (void)state;
    int status = worker_run(crash_in_child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), SIGSEGV);
    int signal = 1;
    assert_null(crash_report_text(shared_report, &signal));
    assert_int_equal(signal, 0);
}

static void install_again(void) {
    if (crash_handler_install(shared_report, (void *)UINTPTR_MAX) != 0)
        _exit(99);
    overflow_stack();
}

static void test_installed_twice(void **state) {
    (void)state;
    os_free(crash_run(install_again, SIGSEGV));
}

/* Workers that are forked after it; the last of the tests that crash. */
static void test_prepared(void **state) {
    (void)state;
    assert_int_equal(crash_handler_prepare(), 0);
    char *text = crash_run(overflow_stack, SIGSEGV);
    assert_int_equal(line_of(text, "recurse"), 0);
    assert_non_null(strstr(text, program_invocation_short_name));
    os_free(text);
}

static void raise_masked(void) {
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    abort();
}

static void test_blocked_signals(void **state) {
    (void)state;
    char *text = crash_run(raise_masked, SIGABRT);
    assert_in_range(line_of(text, "abort"), 0, line_of(text, "raise_masked") - 1);
    os_free(text);
}

/* ---- Damaged reports ---- */

static void test_no_report(void **state) {
    (void)state;
    int signal = 1;
    assert_null(crash_report_text(shared_report, &signal));
    assert_int_equal(signal, 0);
}

static void test_signal_that_is_none(void **state) {
    (void)state;
    const uint32_t wrong[] = {1, SIGKILL, 64, 1000, UINT32_MAX, 0x80000000u};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        int signal = 1;
        shared_report->signal = wrong[i];
        shared_report->frames[0].known = CRASH_KNOWN_ADDRESS;
        assert_null(crash_report_text(shared_report, &signal));
        assert_int_equal(signal, 0);
    }
}

static void test_signal_without_frames(void **state) {
    (void)state;
    int signal = 0;
    shared_report->signal = SIGBUS;
    assert_null(crash_report_text(shared_report, &signal));
    assert_int_equal(signal, SIGBUS);
    shared_report->frames[0].known = CRASH_KNOWN_FUNCTION + 1;
    assert_null(crash_report_text(shared_report, &signal));
    shared_report->frames[0].known = UINT32_MAX;
    assert_null(crash_report_text(shared_report, &signal));
}

static void test_binary_names(void **state) {
    (void)state;
    shared_report->signal = SIGSEGV;
    for (int i = 0; i < 3; i++) {
        crash_frame *frame = &shared_report->frames[i];
        frame->known = (uint32_t)(i + CRASH_KNOWN_ADDRESS);
        frame->address = 0xabc;
        frame->module_offset = 0xde;
        frame->function_offset = 0xf;
        frame->function_name = 8;
    }
    memcpy(shared_report->strings, "m\n%s\x1b", 6);
    memcpy(shared_report->strings + 8, "f\x80\t#0", 6);
    char *text = crash_report_text(shared_report, NULL);
    assert_string_equal(text, "#0 0xabc\n#1 0xabc (m?%s?+0xde)\n#2 f??#0+0xf (m?%s?)\n");
    os_free(text);
}

static void test_names_without_end(void **state) {
    (void)state;
    memset(shared_report->strings, 'x', sizeof shared_report->strings);
    shared_report->signal = SIGSEGV;
    for (uint32_t i = 0; i < CRASH_FRAMES; i++) {
        crash_frame *frame = &shared_report->frames[i];
        frame->known = CRASH_KNOWN_FUNCTION;
        frame->address = frame->module_offset = frame->function_offset = UINT64_MAX;
        frame->module_name = (uint16_t)(CRASH_STRINGS_SIZE - i * 3);
        frame->function_name = (uint16_t)(UINT16_MAX * (i % 2));
    }
    char *text = crash_report_text(shared_report, NULL);
    assert_non_null(text);
    size_t lines = 0;
    for (const char *at = text; *at; at++)
        lines += *at == '\n';
    assert_int_equal(lines, CRASH_FRAMES);
    os_free(text);
}

static uint32_t random_next(void) {
    static uint32_t seed = 12345;
    seed ^= seed << 13;
    seed ^= seed >> 17;
    seed ^= seed << 5;
    return seed;
}

static void test_random_reports(void **state) {
    (void)state;
    /* On the heap, so that the sanitizers see what is read beside it. */
    crash_report *report = malloc(sizeof *report);
    for (int round = 0; round < 500; round++) {
        unsigned char *bytes = (unsigned char *)report;
        for (size_t i = 0; i < sizeof *report; i++)
            bytes[i] = (unsigned char)random_next();
        report->signal = SIGSEGV;
        for (int i = 0; i < CRASH_FRAMES; i++)
            report->frames[i].known = 1 + random_next() % 3;
        char *text = crash_report_text(report, NULL);
        assert_non_null(text);
        for (const char *at = text; *at; at++)
            assert_true(*at == '\n' || (*at >= ' ' && *at <= '~'));
        os_free(text);
    }
    free(report);
}

/* ---- Symbols ---- */

static int first_module(struct dl_phdr_info *module, size_t size, void *found) {
    (void)size;
    *(struct dl_phdr_info *)found = *module;
    return 1;
}

static int other_module(struct dl_phdr_info *module, size_t size, void *found) {
    (void)size;
    *(const char **)found = module->dlpi_name;
    return strchr(module->dlpi_name, '/') != NULL;
}

static symbols_lookup own_lookup(const struct dl_phdr_info *program) {
    return (symbols_lookup){(uintptr_t)write_null - program->dlpi_addr + 1, NULL, 0, 0};
}

static void test_symbols_of_own_file(void **state) {
    (void)state;
    struct dl_phdr_info program;
    symbols_image image;
    dl_iterate_phdr(first_module, &program);
    assert_int_equal(symbols_map("/proc/self/exe", &image), 0);
    assert_true(
        symbols_match(&image, program.dlpi_phdr, program.dlpi_phnum, program.dlpi_addr));
    symbols_lookup lookups[2] = {own_lookup(&program), {1, NULL, 0, 0}};
    symbols_find(&image, lookups, 2);
    assert_string_equal(lookups[0].name, "write_null");
    assert_int_equal(lookups[0].start + 1, lookups[0].address);
    assert_null(lookups[1].name);
    symbols_unmap(&image);
}

static void test_symbols_of_other_file(void **state) {
    (void)state;
    struct dl_phdr_info program;
    symbols_image image;
    const char *library = NULL;
    dl_iterate_phdr(first_module, &program);
    assert_int_equal(dl_iterate_phdr(other_module, &library), 1);
    assert_int_equal(symbols_map(library, &image), 0);
    assert_false(
        symbols_match(&image, program.dlpi_phdr, program.dlpi_phnum, program.dlpi_addr));
    symbols_unmap(&image);
}

static void test_files_that_are_not_elf(void **state) {
    (void)state;
    struct dl_phdr_info program;
    symbols_image image;
    dl_iterate_phdr(first_module, &program);
    assert_int_not_equal(symbols_map("/nowhere", &image), 0);
    assert_int_not_equal(symbols_map("/", &image), 0);
    assert_int_not_equal(symbols_map("/dev/zero", &image), 0);
    assert_int_equal(symbols_map("/etc/passwd", &image), 0);
    symbols_lookup lookup = own_lookup(&program);
    symbols_find(&image, &lookup, 1);
    assert_null(lookup.name);
    assert_false(
        symbols_match(&image, program.dlpi_phdr, program.dlpi_phnum, program.dlpi_addr));
    symbols_unmap(&image);
}

/* Looks in a damaged copy; the names must at least lie in it. */
static void look_in(const unsigned char *bytes, size_t size,
                    const struct dl_phdr_info *program) {
    symbols_image image = {bytes, size};
    symbols_lookup lookups[2] = {own_lookup(program), {random_next(), NULL, 0, 0}};
    symbols_find(&image, lookups, 2);
    symbols_match(&image, program->dlpi_phdr, program->dlpi_phnum, program->dlpi_addr);
    for (int i = 0; i < 2; i++) {
        if (lookups[i].name)
            assert_true(lookups[i].name + strlen(lookups[i].name) <
                        (const char *)bytes + size);
    }
}

static void test_damaged_files(void **state) {
    (void)state;
    struct dl_phdr_info program;
    symbols_image whole;
    ElfW(Ehdr) header;
    dl_iterate_phdr(first_module, &program);
    assert_int_equal(symbols_map("/proc/self/exe", &whole), 0);
    memcpy(&header, whole.bytes, sizeof header);
    unsigned char *copy = malloc(whole.size);
    for (int round = 0; round < 300; round++) {
        memcpy(copy, whole.bytes, whole.size);
        for (uint32_t i = random_next() % 4 + 1; i > 0; i--) {
            size_t at =
                random_next() % 3 == 0
                    ? random_next() % sizeof header
                    : header.e_shoff + random_next() % (whole.size - header.e_shoff);
            copy[at] = random_next() % 4 ? (unsigned char)random_next() : 0xff;
        }
        look_in(copy, whole.size, &program);
    }
    free(copy);
    for (size_t size = 0; size < whole.size; size += size < 256 ? 1 : whole.size / 64) {
        copy = malloc(size + 1); /* so that it is never the NULL of malloc(0) */
        memcpy(copy, whole.bytes, size);
        look_in(copy, size, &program);
        free(copy);
    }
    symbols_unmap(&whole);
}

#define CRASH_TEST(name)                                                                 \
    cmocka_unit_test_setup_teardown(name, report_setup, report_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        CRASH_TEST(test_null_write),
        CRASH_TEST(test_fault_address),
        CRASH_TEST(test_abort),
        CRASH_TEST(test_division),
        CRASH_TEST(test_bus_error),
        CRASH_TEST(test_illegal_instruction),
        CRASH_TEST(test_stack_overflow),
        CRASH_TEST(test_wild_calls),
        CRASH_TEST(test_through_a_library),
        CRASH_TEST(test_in_the_kernels_module),
        CRASH_TEST(test_corrupt_heap),
        CRASH_TEST(test_no_address_space),
        CRASH_TEST(test_no_descriptors),
        CRASH_TEST(test_smashed_stack),
        CRASH_TEST(test_fault_in_every_step),
        CRASH_TEST(test_hanging_handler),
        CRASH_TEST(test_many_threads_crash),
        CRASH_TEST(test_child_of_the_worker),
        CRASH_TEST(test_installed_twice),
        CRASH_TEST(test_blocked_signals),
        CRASH_TEST(test_prepared),
        CRASH_TEST(test_no_report),
        CRASH_TEST(test_signal_that_is_none),
        CRASH_TEST(test_signal_without_frames),
        CRASH_TEST(test_binary_names),
        CRASH_TEST(test_names_without_end),
        CRASH_TEST(test_random_reports),
        cmocka_unit_test(test_symbols_of_own_file),
        cmocka_unit_test(test_symbols_of_other_file),
        cmocka_unit_test(test_files_that_are_not_elf),
        cmocka_unit_test(test_damaged_files),
    };
    alarm(TIME_LIMIT_S);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
