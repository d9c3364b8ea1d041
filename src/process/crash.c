/* Native crash backtraces: the handler in the worker, and the reader in the program.
 *
 * Design. The handler runs in a process of which nothing is sound but the kernel's side:
 * the heap may be damaged, any lock held, the stack overwritten. So it neither allocates
 * nor formats, and works in steps, each of which leaves the report better than it was:
 *
 *   1. the signal; the address of the faulting instruction
 *   2. the addresses of the callers (libgcc's unwinder, by the modules' tables)
 *   3. for each the module and the place in it (dl_iterate_phdr)
 *   4. module by module, the functions' names (process/symbols.h)
 *
 * A fault inside a step ends that step (sigsetjmp), and the next goes on with what there
 * is; a fault outside of one ends the process. A step that hangs, on a lock of the loader
 * that the crash left held, is ended by SIGALRM after WATCHDOG_MS. In every case the
 * process dies of the signal that it crashed of, so that its parent sees the true wait
 * status.
 *
 * Who writes: the first thread that crashes claims `crash.thread` (compare and swap) and
 * is from then on the only one to write the report and the rest of `crash`; other threads
 * that crash wait for the process to die. `frame.known` is stored by release after what
 * it stands for, and only grows, so that the program may read whenever the worker ended,
 * or even before.
 *
 * The reader copies the report once and checks the copy: the worker is not trusted.
 */
#include "process/crash.h"

#include "platform/platform.h"
#include "process/symbols.h"

#include <errno.h>
#include <link.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>
#include <unwind.h>

#define WATCHDOG_MS 500

/* Of the alternate stack. The largest part are two signal frames, of the crash and of a
 * fault in the handler: 3 KiB each with AVX-512 registers, 11 KiB with AMX ones. */
#define STACK_SIZE 65536

/* Names are cut to this, so that no single one takes the place of the others. */
#define MODULE_NAME_MAX 100
#define FUNCTION_NAME_MAX 200

/* "#63 ", function, "+0x" and 16 digits, " (", module, "+0x" and 16 digits, ")\n" */
#define LINE_SIZE_MAX (4 + FUNCTION_NAME_MAX + 19 + 2 + MODULE_NAME_MAX + 19 + 2)

_Static_assert(sizeof(crash_frame) == 32, "layout shared between processes");
_Static_assert(sizeof(crash_report) == CRASH_REPORT_SIZE,
               "layout shared between processes");
_Static_assert(CRASH_STRINGS_SIZE <= UINT16_MAX, "offsets of strings are 16 bits");
_Static_assert(ATOMIC_INT_LOCK_FREE == 2,
               "atomics in shared memory and in a signal handler");

static const int crash_signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};
#define CRASH_SIGNALS (sizeof crash_signals / sizeof crash_signals[0])

/* A module that is in the backtrace. */
typedef struct crash_module {
    uintptr_t load_bias;
    const symbols_segment *headers;
    size_t header_count;
    const char *path;
} crash_module;

/* What the handler works with: static, since there is no heap and the stack is small. */
static struct {
    /* Set by crash_handler_install(). */
    crash_report *report;
    pid_t process;
    uintptr_t outermost;
    void *stack;
    char program_name[MODULE_NAME_MAX + 1];
    /* Of the crash. */
    _Atomic pid_t thread; /* the thread that handles it, 0 before */
    volatile sig_atomic_t signal;
    volatile sig_atomic_t in_step;
    sigjmp_buf step;
    siginfo_t *info;
    ucontext_t *context;
    uintptr_t unwound_from; /* where unwinding meets the faulting function */
    size_t frame_count;
    uintptr_t inside[CRASH_FRAMES]; /* addresses in the instructions that frames are at */
    size_t strings_size;
    crash_module modules[CRASH_FRAMES];
    size_t module_count;
    size_t module_named; /* the one that is being searched for names */
    uint8_t module_of[CRASH_FRAMES];
} crash;

/* ---- Registers ---- */

#if defined(__x86_64__)

static uintptr_t context_pc(const ucontext_t *context) {
    return (uintptr_t)context->uc_mcontext.gregs[REG_RIP];
}

/* Where the function returns to that has been called and has done nothing yet. */
__attribute__((no_sanitize("address"))) static uintptr_t context_return_address(
    const ucontext_t *context) {
    return *(const uintptr_t *)context->uc_mcontext.gregs[REG_RSP];
}

/* Makes it as if the call of that function were under way: to unwind from, not to run. */
static void context_leave_call(ucontext_t *context, uintptr_t return_address) {
    context->uc_mcontext.gregs[REG_RIP] = (greg_t)(return_address - 1);
    context->uc_mcontext.gregs[REG_RSP] += (greg_t)sizeof(uintptr_t);
}

#elif defined(__aarch64__)

static uintptr_t context_pc(const ucontext_t *context) {
    return (uintptr_t)context->uc_mcontext.pc;
}

static uintptr_t context_return_address(const ucontext_t *context) {
    return (uintptr_t)context->uc_mcontext.regs[30];
}

static void context_leave_call(ucontext_t *context, uintptr_t return_address) {
    context->uc_mcontext.pc = return_address - 1;
}

#else
#error "crash.c: say where this processor's program counter and return address are"
#endif

/* ---- Steps of the report ---- */

/* Runs a step; a fault in it ends it (see handle_again). */
static void run_step(void (*step)(void)) {
    if (sigsetjmp(crash.step, 0) == 0) {
        crash.in_step = 1;
        step();
    }
    crash.in_step = 0;
}

static void note_frame(uintptr_t address, uintptr_t inside) {
    crash_frame *frame = &crash.report->frames[crash.frame_count];
    crash.inside[crash.frame_count] = inside;
    frame->address = address;
    atomic_store_explicit(&frame->known, CRASH_KNOWN_ADDRESS, memory_order_release);
    crash.frame_count++;
}

/* Adds a name to the report's strings; false if it has no room. */
static bool note_string(const char *text, size_t size_max, uint16_t *offset) {
    size_t size = strnlen(text, size_max);
    if (CRASH_STRINGS_SIZE - crash.strings_size < size + 1)
        return false;
    memcpy(crash.report->strings + crash.strings_size, text, size);
    *offset = (uint16_t)crash.strings_size;
    crash.strings_size += size + 1; /* what follows is zero already */
    return true;
}

/* True if a segment with these permissions of the module holds the address. */
static bool module_holds(const struct dl_phdr_info *module, uintptr_t address,
                         ElfW(Word) permissions) {
    for (size_t i = 0; i < module->dlpi_phnum; i++) {
        const symbols_segment *load = &module->dlpi_phdr[i];
        if (load->p_type == PT_LOAD && (load->p_flags & permissions) == permissions &&
            address - module->dlpi_addr - load->p_vaddr < load->p_memsz)
            return true;
    }
    return false;
}

static int code_visit(struct dl_phdr_info *module, size_t size, void *address) {
    (void)size;
    return module_holds(module, *(uintptr_t *)address, PF_X);
}

static bool address_is_code(uintptr_t address) {
    return dl_iterate_phdr(code_visit, &address) != 0;
}

static void step_note_fault(void) {
    crash_report *report = crash.report;
    atomic_store_explicit(&report->signal, (uint32_t)crash.signal, memory_order_release);
    if (crash.info->si_code > 0) /* by the kernel, not by kill() or abort() */
        report->fault_address = (uintptr_t)crash.info->si_addr;
    note_frame(crash.unwound_from, crash.unwound_from);
}

/* What has called the worker's own function is of no task: of a worker that was forked, all that the
 * program was doing then. Other threads have other stacks. */
static bool is_below_tasks(struct _Unwind_Context *frame) {
    return atomic_load_explicit(&crash.thread, memory_order_relaxed) == crash.process &&
           (uintptr_t)_Unwind_GetCFA(frame) > crash.outermost;
}

/* Called for each frame, from the handler's own outwards. Those that follow the one that
 * unwinding began at are the callers. */
static _Unwind_Reason_Code frame_visit(struct _Unwind_Context *frame, void *context) {
    bool *reached = context;
    int exact = 0; /* interrupted by a signal: the address is not one to return to */
    uintptr_t address = (uintptr_t)_Unwind_GetIPInfo(frame, &exact);
    if (!*reached) {
        *reached = address == crash.unwound_from;
        return _URC_NO_REASON;
    }
    if (address == 0 || crash.frame_count == CRASH_FRAMES || is_below_tasks(frame))
        return _URC_NORMAL_STOP;
    /* A return address may be the first byte after its function: look at the call. */
    note_frame(address, exact ? address : address - 1);
    return _URC_NO_REASON;
}

static void step_note_callers(void) {
    bool reached = false;
    _Unwind_Backtrace(frame_visit, &reached);
}

/* After a call through a wild pointer the program counter is in no function, and the
 * unwinder faults or finds nothing: then it is made to begin at the caller. */
static void step_leave_wild_call(void) {
    if (crash.frame_count > 1 || address_is_code(crash.unwound_from))
        return;
    uintptr_t return_address = context_return_address(crash.context);
    if (!address_is_code(return_address - 1))
        return;
    context_leave_call(crash.context, return_address);
    crash.unwound_from = return_address - 1;
    note_frame(return_address, return_address - 1);
    step_note_callers();
}

static const char *module_name(const char *path) {
    const char *slash = strrchr(path, '/');
    if (!*path)
        return crash.program_name;
    return slash ? slash + 1 : path;
}

static int module_visit(struct dl_phdr_info *module, size_t size, void *context) {
    (void)size;
    (void)context;
    bool added = false;
    uint16_t name = 0;
    for (size_t i = 0; i < crash.frame_count; i++) {
        crash_frame *frame = &crash.report->frames[i];
        if (atomic_load_explicit(&frame->known, memory_order_relaxed) !=
                CRASH_KNOWN_ADDRESS ||
            !module_holds(module, crash.inside[i], 0))
            continue;
        if (!added) {
            if (!note_string(module_name(module->dlpi_name), MODULE_NAME_MAX, &name))
                return 1;
            crash.modules[crash.module_count++] =
                (crash_module){module->dlpi_addr, module->dlpi_phdr, module->dlpi_phnum,
                               *module->dlpi_name ? module->dlpi_name : "/proc/self/exe"};
            added = true;
        }
        crash.module_of[i] = (uint8_t)(crash.module_count - 1);
        frame->module_name = name;
        frame->module_offset = frame->address - module->dlpi_addr;
        atomic_store_explicit(&frame->known, CRASH_KNOWN_MODULE, memory_order_release);
    }
    return 0;
}

static void step_note_modules(void) {
    dl_iterate_phdr(module_visit, NULL);
}

/* The module's file; of the kernel's own module, which has none, its memory. */
static bool module_image(const crash_module *module, symbols_image *image, bool *mapped) {
    uintptr_t kernel_module = (uintptr_t)getauxval(AT_SYSINFO_EHDR);
    for (size_t i = 0; i < module->header_count; i++) {
        const symbols_segment *load = &module->headers[i];
        if (load->p_type != PT_LOAD || module->load_bias + load->p_vaddr != kernel_module)
            continue;
        size_t page = (size_t)getauxval(AT_PAGESZ);
        *mapped = false;
        *image = (symbols_image){(const unsigned char *)kernel_module,
                                 (load->p_filesz + page - 1) / page * page};
        return true;
    }
    *mapped = symbols_map(module->path, image) == 0;
    return *mapped;
}

static void note_function(size_t index, const symbols_lookup *lookup) {
    crash_frame *frame = &crash.report->frames[index];
    if (!lookup->name ||
        !note_string(lookup->name, FUNCTION_NAME_MAX, &frame->function_name))
        return;
    frame->function_offset = frame->module_offset - lookup->start;
    atomic_store_explicit(&frame->known, CRASH_KNOWN_FUNCTION, memory_order_release);
}

static void step_note_functions(void) {
    const crash_module *module = &crash.modules[crash.module_named];
    symbols_lookup lookups[CRASH_FRAMES];
    uint8_t frames[CRASH_FRAMES];
    size_t count = 0;
    for (size_t i = 0; i < crash.frame_count; i++) {
        if (crash.report->frames[i].known != CRASH_KNOWN_MODULE ||
            crash.module_of[i] != crash.module_named)
            continue;
        frames[count] = (uint8_t)i;
        lookups[count++] =
            (symbols_lookup){crash.inside[i] - module->load_bias, NULL, 0, 0};
    }
    symbols_image image;
    bool mapped;
    if (!module_image(module, &image, &mapped))
        return;
    if (!mapped ||
        symbols_match(&image, module->headers, module->header_count, module->load_bias)) {
        symbols_find(&image, lookups, count);
        for (size_t i = 0; i < count; i++)
            note_function(frames[i], &lookups[i]);
    }
    if (mapped)
        symbols_unmap(&image);
}

/* ---- The handler ---- */

/* Before a call that does not return, the address sanitizer allocates and opens files. */
#define HANDLER __attribute__((no_sanitize("address")))

/* Lets through what ends a step; the handler is entered with every signal blocked. */
static void signals_unblock(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    for (size_t i = 0; i < CRASH_SIGNALS; i++)
        sigaddset(&set, crash_signals[i]);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
}

/* Ends the process by a signal, whatever its disposition and mask. */
HANDLER static _Noreturn void die(int signal) {
    struct sigaction action = {.sa_handler = SIG_DFL};
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    sigaction(signal, &action, NULL);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), signal);
    _exit(128 + signal); /* the first process of a PID namespace: signals do not end it */
}

HANDLER static void handle_watchdog(int signal) {
    (void)signal;
    die(crash.signal);
}

/* Ends the process if what follows takes too long. */
static void watchdog_start(void) {
    struct sigaction action = {.sa_handler = handle_watchdog, .sa_flags = SA_ONSTACK};
    struct itimerval timer = {.it_value = {.tv_usec = WATCHDOG_MS * 1000}};
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &timer, NULL);
}

/* A crash while one is being handled. */
HANDLER static _Noreturn void handle_again(pid_t thread) {
    if (thread != atomic_load_explicit(&crash.thread, memory_order_relaxed)) {
        for (;;)
            pause(); /* the other thread's crash ends the process */
    }
    if (!crash.in_step)
        die(crash.signal);
    crash.in_step = 0;
    signals_unblock();
    siglongjmp(crash.step, 1);
}

HANDLER static void handle_crash(int signal, siginfo_t *info, void *context) {
    pid_t thread = (pid_t)syscall(SYS_gettid);
    pid_t nobody = 0;
    if (getpid() != crash.process)
        die(signal);
    if (!atomic_compare_exchange_strong(&crash.thread, &nobody, thread))
        handle_again(thread);
    crash.signal = signal;
    watchdog_start();
    signals_unblock();
    crash.info = info;
    crash.context = context;
    crash.unwound_from = context_pc(crash.context);
    run_step(step_note_fault);
    run_step(step_note_callers);
    run_step(step_leave_wild_call);
    run_step(step_note_modules);
    for (; crash.module_named < crash.module_count; crash.module_named++)
        run_step(step_note_functions);
    die(signal);
}

/* ---- Installing ---- */

/* A stack with a page below it that faults, or NULL. */
static void *stack_new(size_t size) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *memory =
        os_attempt(OS_FAULT_SHARED, ENOMEM, MAP_FAILED,
                   mmap(NULL, page + size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (memory == MAP_FAILED)
        return NULL;
    if (os_attempt(OS_FAULT_SHARED, ENOMEM, -1,
                   mprotect(memory + page, size, PROT_READ | PROT_WRITE)) != 0) {
        munmap(memory, page + size);
        return NULL;
    }
    return memory + page;
}

static void program_name_find(void) {
    char path[4096];
    ssize_t size = readlink("/proc/self/exe", path, sizeof path - 1);
    path[size > 0 ? size : 0] = 0;
    const char *slash = strrchr(path, '/');
    snprintf(crash.program_name, sizeof crash.program_name, "%s",
             slash ? slash + 1 : "program");
}

static _Unwind_Reason_Code frame_ignore(struct _Unwind_Context *frame, void *context) {
    (void)frame;
    (void)context;
    return _URC_NORMAL_STOP;
}

int crash_handler_prepare(void) {
    if (crash.stack)
        return 0;
    void *stack = stack_new(STACK_SIZE);
    if (!stack)
        return ENOMEM;
    crash.stack = stack;
    program_name_find();
    /* The unwinder's first use sets it up and binds it: now, while all is well. */
    _Unwind_Backtrace(frame_ignore, NULL);
    return 0;
}

int crash_handler_install(crash_report *report, const void *outermost) {
    int error = crash_handler_prepare();
    if (error)
        return error;
    crash.report = report;
    crash.process = getpid();
    crash.outermost = (uintptr_t)outermost;
    atomic_store_explicit(&crash.thread, 0, memory_order_relaxed);

    stack_t stack = {.ss_sp = crash.stack, .ss_size = STACK_SIZE};
    if (sigaltstack(&stack, NULL) != 0)
        return errno;
    struct sigaction action = {.sa_sigaction = handle_crash,
                               .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigfillset(&action.sa_mask);
    for (size_t i = 0; i < CRASH_SIGNALS; i++) {
        if (sigaction(crash_signals[i], &action, NULL) != 0)
            return errno;
    }
    return 0;
}

/* ---- The reader, in the program ---- */

static bool signal_is_crash(uint32_t signal) {
    for (size_t i = 0; i < CRASH_SIGNALS; i++) {
        if ((uint32_t)crash_signals[i] == signal)
            return true;
    }
    return false;
}

/* A name of the report's strings: how many bytes may be read of it. */
static int name_size(const crash_report *report, uint16_t offset, size_t size_max) {
    if (offset >= CRASH_STRINGS_SIZE)
        return 0;
    size_t left = CRASH_STRINGS_SIZE - (size_t)offset;
    return (int)strnlen(report->strings + offset, left < size_max ? left : size_max);
}

static crash_known frame_known(const crash_frame *frame) {
    uint32_t known = atomic_load_explicit(&frame->known, memory_order_relaxed);
    return known <= CRASH_KNOWN_FUNCTION ? (crash_known)known : CRASH_KNOWN_NOTHING;
}

/* Writes the line of one frame, returns its length. */
static size_t line_write(char *line, const crash_report *report, size_t index) {
    const crash_frame *frame = &report->frames[index];
    crash_known known = frame_known(frame);
    int module_size = name_size(report, frame->module_name, MODULE_NAME_MAX);
    int function_size = name_size(report, frame->function_name, FUNCTION_NAME_MAX);
    const char *module = module_size ? report->strings + frame->module_name : "";
    const char *function = function_size ? report->strings + frame->function_name : "";
    int size;
    if (known == CRASH_KNOWN_ADDRESS || !module_size)
        size = snprintf(line, LINE_SIZE_MAX, "#%zu 0x%llx", index,
                        (unsigned long long)frame->address);
    else if (known == CRASH_KNOWN_MODULE || !function_size)
        size = snprintf(line, LINE_SIZE_MAX, "#%zu 0x%llx (%.*s+0x%llx)", index,
                        (unsigned long long)frame->address, module_size, module,
                        (unsigned long long)frame->module_offset);
    else
        size = snprintf(line, LINE_SIZE_MAX, "#%zu %.*s+0x%llx (%.*s)", index,
                        function_size, function,
                        (unsigned long long)frame->function_offset, module_size, module);
    if (size < 0)
        return 0;
    for (int i = 0; i < size; i++) {
        if (line[i] < ' ' || line[i] > '~')
            line[i] = '?';
    }
    line[size] = '\n';
    return (size_t)size + 1;
}

/* The text of a report that nobody changes any more, or NULL. */
static char *text_new(const crash_report *report) {
    size_t count = 0;
    while (count < CRASH_FRAMES && frame_known(&report->frames[count]))
        count++;
    char *text = count ? os_alloc(count * LINE_SIZE_MAX + 1) : NULL;
    if (!text)
        return NULL;
    size_t size = 0;
    for (size_t i = 0; i < count; i++)
        size += line_write(text + size, report, i);
    text[size] = 0;
    char *shrunk = os_realloc(text, size + 1);
    return shrunk ? shrunk : text;
}

char *crash_report_text(const crash_report *report, int *signal) {
    uint32_t number = atomic_load_explicit(&report->signal, memory_order_acquire);
    if (!signal_is_crash(number))
        number = 0;
    if (signal)
        *signal = (int)number;
    crash_report *copy = number ? os_alloc(sizeof *copy) : NULL;
    if (!copy)
        return NULL;
    memcpy(copy, report, sizeof *copy);
    char *text = text_new(copy);
    os_free(copy);
    return text;
}
