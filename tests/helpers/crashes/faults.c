/*
 * Sees every call by which this process changes files below a folder, and can end the process, or refuse the call, at
 * any one of them. Linux on x86-64 only.
 *
 * A seccomp filter turns those system calls into SIGSYS, and the handler makes them itself. Wrapping libc's functions
 * (LD_PRELOAD) would not do: the Rust crate `tempfile`, by which safetensors writes, renames without libc.
 *
 * A record of the log is a `struct record`, the path, the second path of a rename, and the bytes of a write.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>

enum { WRITE, FSYNC, RENAME, CREATE, MKDIR, UNLINK, RMDIR, TRUNCATE, ALLOCATE, UNKNOWN };
enum { WATCH, KILL_BEFORE, KILL_HALF_WAY, FAIL_ONCE, FAIL_FROM, FAIL_HALF_WAY };

struct record {
    int64_t kind, result, offset, length; /* bytes of a write from `offset` on; a truncated or allocated file's size */
    int64_t first, second, content;       /* bytes of the two paths and of what was written, which follow */
};

static char root[4096];
static int output = -1;
static long at, count;
static int action, error;
static unsigned refusable; /* kinds, as bits, that FAIL_ONCE and the like refuse */
static volatile char held;

/* The only place that the filter lets through: system calls whose return address is `made`. */
long make(long number, ...) __attribute__((visibility("hidden")));
extern char made[] __attribute__((visibility("hidden")));
__asm__(".text\n.hidden make\n.hidden made\n.globl make\nmake:\n"
        "  mov %rdi, %rax\n  mov %rsi, %rdi\n  mov %rdx, %rsi\n  mov %rcx, %rdx\n  mov %r8, %r10\n  mov %r9, %r8\n"
        "  mov 8(%rsp), %r9\n  syscall\n.globl made\nmade:\n  ret\n");

static int is_below(const char *path) {
    size_t n = strlen(root);
    return strncmp(path, root, n) == 0 && (path[n] == '/' || path[n] == 0);
}

/* The path of a descriptor; 0 for what has no name, such as pipes and deleted files. */
static int path_of(int descriptor, char *path) {
    char link[32] = "/proc/self/fd/", digits[12];
    int n = 0, end = strlen(link);
    if (descriptor < 0) return 0;
    do digits[n++] = '0' + descriptor % 10;
    while (descriptor /= 10);
    while (n) link[end++] = digits[--n];
    link[end] = 0;
    long length = make(SYS_readlinkat, AT_FDCWD, link, path, 4095);
    if (length <= 0 || path[0] != '/') return 0;
    path[length] = 0;
    return length < 10 || strcmp(path + length - 10, " (deleted)") != 0;
}

/* What `name` means, seen from the folder `at`, as an absolute path. */
static int absolute(int folder, const char *name, char *path) {
    path[0] = 0;
    if (name[0] != '/') {
        if (folder == AT_FDCWD ? make(SYS_getcwd, path, 4096) <= 0 : !path_of(folder, path)) return 0;
        strcat(path, "/");
    }
    if (strlen(path) + strlen(name) >= 4096) return 0;
    strcat(path, name);
    return 1;
}

static int exists(const char *path) {
    struct stat status;
    return make(SYS_newfstatat, AT_FDCWD, path, &status, AT_SYMLINK_NOFOLLOW) == 0;
}

static void emit(struct record record, const char *first, const char *second, const struct iovec *parts) {
    record.first = strlen(first), record.second = strlen(second);
    record.content = record.kind == WRITE && record.result > 0 ? record.result : 0;
    struct iovec all[] = {{&record, sizeof record}, {(void *)first, record.first}, {(void *)second, record.second}};
    make(SYS_writev, output, all, 3);
    for (int64_t left = record.content; left > 0; parts++) {
        size_t some = parts->iov_len < (size_t)left ? parts->iov_len : (size_t)left;
        for (size_t done = 0; done < some;) done += make(SYS_write, output, (char *)parts->iov_base + done, some - done);
        left -= some;
    }
}

static void die(void) {
    make(SYS_kill, make(SYS_getpid), SIGKILL);
    for (;;) make(SYS_pause);
}

/* The first half of a write of `total` bytes from `parts`, as one call. */
static long half(int descriptor, const struct iovec *parts, size_t total, long offset) {
    size_t some = total / 2 < parts->iov_len ? total / 2 : parts->iov_len;
    return offset < 0 ? make(SYS_write, descriptor, parts->iov_base, some)
                      : make(SYS_pwrite64, descriptor, parts->iov_base, some, offset);
}

/* Count an operation, and make it, refuse it or die. `parts` and `offset` (-1: where the file is) are of a write. */
static long operate(int kind, const char *first, const char *second, long number, const long *a,
                    const struct iovec *parts, size_t total, long offset, int64_t length) {
    struct record record = {.kind = kind, .offset = offset, .length = length};
    while (__atomic_test_and_set(&held, __ATOMIC_ACQUIRE)) make(SYS_sched_yield);
    long index = count++;
    int now = index == at, refused = (refusable >> kind & 1) && action >= FAIL_ONCE;
    long result;
    if (now && action == KILL_BEFORE) die();
    if (now && action == KILL_HALF_WAY && kind == WRITE) half(a[0], parts, total, offset), die();
    if (now && action == FAIL_HALF_WAY && kind == WRITE && total > 1)
        result = half(a[0], parts, total, offset);
    else if (refused && (now || (index > at && action != FAIL_ONCE)))
        result = -error;
    else if (kind == FSYNC)
        result = 0; /* the power never really fails here, and waiting for the disk takes a third of a run's time */
    else
        result = make(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    record.result = result;
    if (kind == WRITE && offset < 0 && result >= 0) record.offset = make(SYS_lseek, a[0], 0L, SEEK_CUR) - result;
    emit(record, first, second, parts);
    __atomic_clear(&held, __ATOMIC_RELEASE);
    return result;
}

static long handle(long number, const long *a) {
    char path[4096], other[4096];
#define PASS return make(number, a[0], a[1], a[2], a[3], a[4], a[5])
#define DO(kind, first, second, length) return operate(kind, first, second, number, a, NULL, 0, 0, length)
    switch (number) {
    case SYS_write:
    case SYS_pwrite64: {
        if (!path_of(a[0], path) || !is_below(path)) PASS;
        struct iovec part = {(void *)a[1], a[2]};
        return operate(WRITE, path, "", number, a, &part, a[2], number == SYS_write ? -1 : a[3], 0);
    }
    case SYS_writev:
    case SYS_pwritev: {
        if (!path_of(a[0], path) || !is_below(path)) PASS;
        const struct iovec *parts = (void *)a[1];
        size_t total = 0;
        for (long i = 0; i < a[2]; i++) total += parts[i].iov_len;
        return operate(WRITE, path, "", number, a, parts, total, number == SYS_writev ? -1 : a[3], 0);
    }
    case SYS_fsync:
    case SYS_fdatasync:
        if (!path_of(a[0], path) || !is_below(path)) PASS;
        DO(FSYNC, path, "", 0);
    case SYS_ftruncate:
        if (!path_of(a[0], path) || !is_below(path)) PASS;
        DO(TRUNCATE, path, "", a[1]);
    case SYS_fallocate:
        if (!path_of(a[0], path) || !is_below(path)) PASS;
        DO(a[1] == 0 ? ALLOCATE : UNKNOWN, path, "", a[2] + a[3]);
    case SYS_open:
    case SYS_creat:
    case SYS_openat: {
        int folder = number == SYS_openat ? a[0] : AT_FDCWD;
        const char *name = (void *)a[number == SYS_openat ? 1 : 0];
        long flags = number == SYS_creat ? O_CREAT | O_TRUNC : a[number == SYS_openat ? 2 : 1];
        if (!(flags & (O_CREAT | O_TRUNC)) || !absolute(folder, name, path) || !is_below(path)) PASS;
        if (exists(path)) {
            if (!(flags & O_TRUNC)) PASS;
            DO(TRUNCATE, path, "", 0);
        }
        if (!(flags & O_CREAT)) PASS;
        DO(CREATE, path, "", 0);
    }
    case SYS_mkdir:
    case SYS_mkdirat:
        if (!absolute(number == SYS_mkdir ? AT_FDCWD : a[0], (void *)a[number == SYS_mkdir ? 0 : 1], path)) PASS;
        if (!is_below(path) || exists(path)) PASS;
        DO(MKDIR, path, "", 0);
    case SYS_unlink:
    case SYS_rmdir:
        if (!absolute(AT_FDCWD, (void *)a[0], path) || !is_below(path) || !exists(path)) PASS;
        DO(number == SYS_unlink ? UNLINK : RMDIR, path, "", 0);
    case SYS_unlinkat:
        if (!absolute(a[0], (void *)a[1], path) || !is_below(path) || !exists(path)) PASS;
        DO(a[2] & AT_REMOVEDIR ? RMDIR : UNLINK, path, "", 0);
    case SYS_rename:
        if (!absolute(AT_FDCWD, (void *)a[0], path) || !absolute(AT_FDCWD, (void *)a[1], other)) PASS;
        if (!is_below(path) && !is_below(other)) PASS;
        DO(RENAME, path, other, 0);
    case SYS_renameat:
    case SYS_renameat2:
        if (!absolute(a[0], (void *)a[1], path) || !absolute(a[2], (void *)a[3], other)) PASS;
        if (!is_below(path) && !is_below(other)) PASS;
        DO(number == SYS_renameat2 && (a[4] & RENAME_EXCHANGE) ? UNKNOWN : RENAME, path, other, 0);
    case SYS_mmap: /* here only if shared */
        if (!(a[2] & PROT_WRITE) || !path_of(a[4], path) || !is_below(path)) PASS;
        DO(UNKNOWN, path, "mmap", 0);
    case SYS_copy_file_range:
        if (!path_of(a[2], path) || !is_below(path)) PASS;
        DO(UNKNOWN, path, "copy_file_range", 0);
    case SYS_link:
    case SYS_symlink:
        if (!absolute(AT_FDCWD, (void *)a[1], path) || !is_below(path)) PASS;
        DO(UNKNOWN, path, "link", 0);
    case SYS_linkat:
        if (!absolute(a[2], (void *)a[3], path) || !is_below(path)) PASS;
        DO(UNKNOWN, path, "link", 0);
    case SYS_symlinkat:
        if (!absolute(a[1], (void *)a[2], path) || !is_below(path)) PASS;
        DO(UNKNOWN, path, "link", 0);
    default: /* sendfile, splice, truncate and the like by path */
        if (number == SYS_truncate ? !absolute(AT_FDCWD, (void *)a[0], path)
                                   : !path_of(a[number == SYS_sendfile ? 0 : number == SYS_splice ? 2 : 0], path))
            PASS;
        if (!is_below(path)) PASS;
        DO(UNKNOWN, path, "other", 0);
    }
}

static void on_sigsys(int signal_number, siginfo_t *information, void *context) {
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    const long a[] = {r[REG_RDI], r[REG_RSI], r[REG_RDX], r[REG_R10], r[REG_R8], r[REG_R9]};
    (void)signal_number;
    r[REG_RAX] = handle(information->si_syscall, a);
}

#define LOAD(what) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, what)
#define EQUAL(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, yes, no)
#define RETURN(what) BPF_STMT(BPF_RET | BPF_K, what)
#define TRAP(number) EQUAL(number, 0, 1), RETURN(SECCOMP_RET_TRAP)

/* Watch this process, for good: log to `output_` what changes below `root_`, and act at operation `at_`. 0 or errno. */
int arm(const char *root_, int output_, long at_, int action_, int error_, unsigned refusable_) {
    strncpy(root, root_, sizeof root - 1);
    output = output_, at = at_, action = action_, error = error_, refusable = refusable_, count = 0;
    struct sigaction handler = {.sa_sigaction = on_sigsys, .sa_flags = SA_SIGINFO | SA_RESTART};
    if (sigaction(SIGSYS, &handler, NULL) != 0) return errno;
    uint64_t here = (uint64_t)made;
    struct sock_filter filter[] = {
        LOAD(offsetof(struct seccomp_data, arch)),
        EQUAL(AUDIT_ARCH_X86_64, 1, 0),
        RETURN(SECCOMP_RET_ALLOW),
        LOAD(offsetof(struct seccomp_data, instruction_pointer)),
        EQUAL((uint32_t)here, 0, 3),
        LOAD(offsetof(struct seccomp_data, instruction_pointer) + 4),
        EQUAL((uint32_t)(here >> 32), 0, 1),
        RETURN(SECCOMP_RET_ALLOW),
        LOAD(offsetof(struct seccomp_data, nr)),
        EQUAL(SYS_mmap, 0, 4),
        LOAD(offsetof(struct seccomp_data, args[3])),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, MAP_SHARED, 0, 1),
        RETURN(SECCOMP_RET_TRAP),
        RETURN(SECCOMP_RET_ALLOW),
        TRAP(SYS_write), TRAP(SYS_pwrite64), TRAP(SYS_writev), TRAP(SYS_pwritev), TRAP(SYS_pwritev2),
        TRAP(SYS_fsync), TRAP(SYS_fdatasync), TRAP(SYS_sync_file_range), TRAP(SYS_syncfs),
        TRAP(SYS_ftruncate), TRAP(SYS_truncate), TRAP(SYS_fallocate),
        TRAP(SYS_open), TRAP(SYS_creat), TRAP(SYS_openat),
        TRAP(SYS_mkdir), TRAP(SYS_mkdirat), TRAP(SYS_unlink), TRAP(SYS_unlinkat), TRAP(SYS_rmdir),
        TRAP(SYS_rename), TRAP(SYS_renameat), TRAP(SYS_renameat2),
        TRAP(SYS_link), TRAP(SYS_linkat), TRAP(SYS_symlink), TRAP(SYS_symlinkat),
        TRAP(SYS_copy_file_range), TRAP(SYS_sendfile), TRAP(SYS_splice),
        RETURN(SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return errno;
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) return errno;
    return 0;
}
