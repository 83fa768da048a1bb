/*
 * Faults for the extension's processes: calls on files that fail, and a wall clock that jumps, while they run.
 *
 * faults.rs builds this and has it loaded into the extension's processes only (LD_PRELOAD). What is to happen is in
 * the file that REMOTE_TLS_FAULTS names: it is mapped, so a change counts at once and a look at it costs no system
 * call. Each number is read and written as a whole, so neither side waits for the other.
 *
 * The functions here stand in front of libc's of the same name and make the system call themselves. Rust's standard
 * library, by which everything is done to the journals' files, reaches the kernel through them (`nm -D` on the binary
 * shows which ones); calls of the crate rustix don't.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum call { OPEN, READ, WRITE, SYNC, TRUNCATE, RENAME, MAKE_DIRECTORY, REMOVE, CALLS };

/* As faults.rs writes it. */
struct control {
    int64_t clock;           /* seconds that the wall clock is ahead of the real one */
    int32_t error[CALLS];    /* the errno of calls of each kind; 0: they are made */
    uint64_t failed[CALLS];  /* how many have failed; counted here */
    int64_t room;            /* so many bytes are still written before writes fail */
    char prefix[256];        /* what the paths of those that fail begin with */
};

static const struct control nothing;
static const struct control *control = &nothing;

/* Runs before main. Without the file, nothing happens. */
__attribute__((constructor)) static void find_control(void)
{
    const char *path = getenv("REMOTE_TLS_FAULTS");
    int file = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *mapped = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED)
        control = mapped;
    close(file);
}

/* Whether a call of this kind on this path is to fail: with which errno. */
static int error_of(enum call call, const char *path)
{
    int error = __atomic_load_n(&control->error[call], __ATOMIC_SEQ_CST);
    size_t length = strnlen(control->prefix, sizeof control->prefix);
    return length > 0 && strncmp(path, control->prefix, length) == 0 ? error : 0;
}

/* The same for an open file, whose path the kernel knows. Nothing is asked while no call of this kind is to fail. */
static int error_on(enum call call, int file)
{
    char link[32] = "/proc/self/fd/", digits[12], path[512];
    char *digit = digits + sizeof digits - 1;
    if (__atomic_load_n(&control->error[call], __ATOMIC_SEQ_CST) == 0 || file < 0)
        return 0;
    *digit = '\0';
    do
        *--digit = (char)('0' + file % 10);
    while ((file /= 10) > 0);
    strcat(link, digit);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = '\0';
    return error_of(call, path);
}

/* Counts a failure and sets errno; without an error nothing fails. */
static int fail(enum call call, int error)
{
    if (error == 0)
        return 0;
    __atomic_add_fetch((uint64_t *)&control->failed[call], 1, __ATOMIC_SEQ_CST);
    errno = error;
    return 1;
}

static int fails(enum call call, const char *path)
{
    return fail(call, error_of(call, path));
}

static int fails_on(enum call call, int file)
{
    return fail(call, error_on(call, file));
}

/* How many bytes of a write are written; -1 when it fails. */
static ssize_t written(int file, size_t count)
{
    int error = error_on(WRITE, file);
    int64_t room = __atomic_load_n(&control->room, __ATOMIC_SEQ_CST);
    if (error == 0)
        return (ssize_t)count;
    while (room > 0) {
        int64_t taken = room < (int64_t)count ? room : (int64_t)count;
        if (__atomic_compare_exchange_n((int64_t *)&control->room, &room, room - taken, 0, __ATOMIC_SEQ_CST,
                                        __ATOMIC_SEQ_CST))
            return taken;
    }
    fail(WRITE, error);
    return -1;
}

static int open_at(int directory, const char *path, int flags, mode_t mode)
{
    /* A read-only file system lets files be opened for reading. */
    int writes = (flags & O_ACCMODE) != O_RDONLY || flags & O_CREAT;
    if ((writes || control->error[OPEN] != EROFS) && fails(OPEN, path))
        return -1;
    return (int)syscall(SYS_openat, directory, path, flags, mode);
}

#define MODE(flags, mode)                       \
    mode_t mode = 0;                            \
    if ((flags) & (O_CREAT | O_TMPFILE)) {      \
        va_list arguments;                      \
        va_start(arguments, flags);             \
        mode = va_arg(arguments, mode_t);       \
        va_end(arguments);                      \
    }

int open(const char *path, int flags, ...)
{
    MODE(flags, mode)
    return open_at(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    MODE(flags, mode)
    return open_at(AT_FDCWD, path, flags, mode);
}

ssize_t read(int file, void *bytes, size_t count)
{
    return fails_on(READ, file) ? -1 : syscall(SYS_read, file, bytes, count);
}

ssize_t pread64(int file, void *bytes, size_t count, off64_t at)
{
    return fails_on(READ, file) ? -1 : syscall(SYS_pread64, file, bytes, count, at);
}

ssize_t write(int file, const void *bytes, size_t count)
{
    ssize_t length = written(file, count);
    return length < 0 ? -1 : syscall(SYS_write, file, bytes, (size_t)length);
}

ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t at)
{
    ssize_t length = written(file, count);
    return length < 0 ? -1 : syscall(SYS_pwrite64, file, bytes, (size_t)length, at);
}

int fsync(int file)
{
    return fails_on(SYNC, file) ? -1 : (int)syscall(SYS_fsync, file);
}

int fdatasync(int file)
{
    return fails_on(SYNC, file) ? -1 : (int)syscall(SYS_fdatasync, file);
}

int ftruncate64(int file, off64_t length)
{
    return fails_on(TRUNCATE, file) ? -1 : (int)syscall(SYS_ftruncate, file, length);
}

int rename(const char *old, const char *new)
{
    return fails(RENAME, old) ? -1 : (int)syscall(SYS_renameat2, AT_FDCWD, old, AT_FDCWD, new, 0);
}

int mkdir(const char *path, mode_t mode)
{
    return fails(MAKE_DIRECTORY, path) ? -1 : (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}

int unlink(const char *path)
{
    return fails(REMOVE, path) ? -1 : (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += __atomic_load_n(&control->clock, __ATOMIC_SEQ_CST);
    return result;
}

int gettimeofday(struct timeval *now, void *zone)
{
    struct timespec time;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &time);
    now->tv_sec = time.tv_sec;
    now->tv_usec = time.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now)
{
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now)
        *now = exact.tv_sec;
    return exact.tv_sec;
}
