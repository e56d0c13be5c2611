/* A library to preload: counts the calls that change files, and fails or kills at one of them.
 *
 * FAULT_STATE  a file of 8 bytes that all processes of a run share: the calls so far
 * FAULT_AT     the call that fails, counted from 1; 0 only counts
 * FAULT_ERROR  the errno of that call; 0 kills the process with SIGKILL
 *
 * Writes to standard output and standard error, to pipes and to sockets are not counted.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static uint64_t *calls;
static uint64_t at;
static int error;

__attribute__((constructor)) static void begin(void) {
    const char *state = getenv("FAULT_STATE");
    int file = state ? open(state, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *place = mmap(NULL, sizeof *calls, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (place == MAP_FAILED) return;
    at = strtoull(getenv("FAULT_AT") ? getenv("FAULT_AT") : "0", NULL, 10);
    error = atoi(getenv("FAULT_ERROR") ? getenv("FAULT_ERROR") : "0");
    calls = place;
}

/* Whether this call is the one that fails. */
static int fails(void) {
    if (!calls || __atomic_add_fetch(calls, 1, __ATOMIC_SEQ_CST) != at) return 0;
    if (error == 0) kill(getpid(), SIGKILL);
    errno = error;
    return 1;
}

static int is_file(int fd) {
    struct stat found;
    return fstat(fd, &found) == 0 && (S_ISREG(found.st_mode) || S_ISDIR(found.st_mode));
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRAP_FILE(type, name, parameters, arguments, fd)                                                               \
    type name parameters {                                                                                             \
        if (is_file(fd) && fails()) return -1;                                                                         \
        return REAL(name) arguments;                                                                                   \
    }
#define WRAP(name, parameters, arguments)                                                                              \
    int name parameters {                                                                                              \
        if (fails()) return -1;                                                                                        \
        return REAL(name) arguments;                                                                                   \
    }

WRAP_FILE(ssize_t, write, (int fd, const void *bytes, size_t count), (fd, bytes, count), fd)
WRAP_FILE(ssize_t, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count), fd)
WRAP_FILE(ssize_t, pwrite64, (int fd, const void *bytes, size_t count, off64_t place), (fd, bytes, count, place), fd)
WRAP_FILE(int, fsync, (int fd), (fd), fd)
WRAP_FILE(int, fdatasync, (int fd), (fd), fd)
WRAP_FILE(int, ftruncate64, (int fd, off64_t size), (fd, size), fd)
WRAP_FILE(ssize_t, copy_file_range,
          (int from, off64_t *read, int to, off64_t *written, size_t count, unsigned flags),
          (from, read, to, written, count, flags), to)
WRAP(rename, (const char *from, const char *to), (from, to))
WRAP(renameat2, (int a, const char *from, int b, const char *to, unsigned flags), (a, from, b, to, flags))
WRAP(link, (const char *from, const char *to), (from, to))
WRAP(linkat, (int a, const char *from, int b, const char *to, int flags), (a, from, b, to, flags))
WRAP(symlink, (const char *from, const char *to), (from, to))
WRAP(mkdir, (const char *path, mode_t mode), (path, mode))
WRAP(mkdirat, (int fd, const char *path, mode_t mode), (fd, path, mode))

/* Files that are made count too. */
int open64(const char *path, int flags, ...) {
    mode_t mode = 0;
    if (flags & O_CREAT) {
        va_list rest;
        va_start(rest, flags);
        mode = va_arg(rest, mode_t);
        va_end(rest);
        if (fails()) return -1;
    }
    return REAL(open64)(path, flags, mode);
}
