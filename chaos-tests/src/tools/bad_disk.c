/* A disk that fails when it is told to, put before the C library by LD_PRELOAD.
 *
 * BAD_DISK names a file of 4 KiB that is mapped and read at each call, so that a fault begins and
 * ends at once: a word for what happens at 0, and at 64 the pattern (as of a shell) of the paths to
 * which it happens. For each time it happened a line with the path is added to the file BAD_DISK
 * with ".hits" after its name.
 *
 * What asks the kernel without the C library is not seen; Strongroom and sled do not. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CONTROL_BYTES = 4096, PATTERN_AT = 64, SLOW_SYNC_US = 50000 };

static const volatile char *control;
static char hits[PATH_MAX];

#define REAL(result, name, ...)                                                                    \
    static result (*real_##name)(__VA_ARGS__);                                                     \
    if (!real_##name) real_##name = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("BAD_DISK");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *mapped = mmap(NULL, CONTROL_BYTES, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped == MAP_FAILED) abort();
    snprintf(hits, sizeof hits, "%s.hits", name);
    control = mapped;
}

static int told(const char *word) { return control && !strcmp((const char *)control, word); }

static int hit(const char *path) {
    REAL(ssize_t, write, int, const void *, size_t);
    if (fnmatch((const char *)control + PATTERN_AT, path, 0) != 0) return 0;
    int file = open(hits, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (file < 0) abort();
    char line[PATH_MAX + 1];
    int length = snprintf(line, sizeof line, "%s\n", path);
    if (real_write(file, line, length) != length) abort();
    close(file);
    return 1;
}

static int hit_file(int file) {
    char name[64], path[PATH_MAX];
    snprintf(name, sizeof name, "/proc/self/fd/%d", file);
    ssize_t length = readlink(name, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    int keep = errno, result = hit(path);
    errno = keep;
    return result;
}

/* 0 to go on, -1 to fail with errno set. */
static int sync_fault(int file) {
    if (told("eio-sync") && hit_file(file)) return errno = EIO, -1;
    if (told("slow-sync") && hit_file(file)) usleep(SLOW_SYNC_US);
    return 0;
}

static int write_fault(int file) {
    if (told("enospc") && hit_file(file)) return errno = ENOSPC, -1;
    if (told("eio-write") && hit_file(file)) return errno = EIO, -1;
    return 0;
}

int fsync(int file) {
    REAL(int, fsync, int);
    return sync_fault(file) ? -1 : real_fsync(file);
}

int fdatasync(int file) {
    REAL(int, fdatasync, int);
    if (told("eio-fdatasync") && hit_file(file)) return errno = EIO, -1;
    return sync_fault(file) ? -1 : real_fdatasync(file);
}

int sync_file_range(int file, off64_t offset, off64_t bytes, unsigned flags) {
    REAL(int, sync_file_range, int, off64_t, off64_t, unsigned);
    return sync_fault(file) ? -1 : real_sync_file_range(file, offset, bytes, flags);
}

/* Half of it is written, and then there is nobody to write the rest. */
static void tear(int file, const void *bytes, size_t count, off64_t offset) {
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    if (count < 2 || !told("torn") || !hit_file(file)) return;
    real_pwrite64(file, bytes, count / 2, offset);
    kill(getpid(), SIGKILL);
    pause();
}

ssize_t write(int file, const void *bytes, size_t count) {
    REAL(ssize_t, write, int, const void *, size_t);
    if (told("torn")) tear(file, bytes, count, lseek(file, 0, SEEK_CUR));
    return write_fault(file) ? -1 : real_write(file, bytes, count);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    return write_fault(file) ? -1 : real_writev(file, parts, count);
}

ssize_t pwrite(int file, const void *bytes, size_t count, off_t offset) {
    REAL(ssize_t, pwrite, int, const void *, size_t, off_t);
    tear(file, bytes, count, offset);
    return write_fault(file) ? -1 : real_pwrite(file, bytes, count, offset);
}

ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t offset) {
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    tear(file, bytes, count, offset);
    return write_fault(file) ? -1 : real_pwrite64(file, bytes, count, offset);
}

int ftruncate64(int file, off64_t length) {
    REAL(int, ftruncate64, int, off64_t);
    return write_fault(file) ? -1 : real_ftruncate64(file, length);
}

int rename(const char *source, const char *target) {
    REAL(int, rename, const char *, const char *);
    if (told("eio-rename") && hit(target)) return errno = EIO, -1;
    return real_rename(source, target);
}
