/* A dying disk, on command. Loaded before libc by LD_PRELOAD.
 *
 * While the file named by WEIR_TEST_FAILING_SYNC exists, every sync fails; while the one named by
 * WEIR_TEST_SLOW_SYNC exists, each takes a fifth of a second. While the one named by
 * WEIR_TEST_READ_ONLY exists, whatever would change the file system of the folder WEIR_TEST_DISK
 * fails, as after the kernel took it for broken: also through files that were open before. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static int is_set(const char *name) {
    const char *flag = getenv(name);
    return flag && access(flag, F_OK) == 0;
}

static int sync_or_fail(const char *name, int fd) {
    if (is_set("WEIR_TEST_FAILING_SYNC")) {
        errno = EIO;
        return -1;
    }
    if (is_set("WEIR_TEST_SLOW_SYNC")) usleep(200000);
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    return real(fd);
}

int fsync(int fd) { return sync_or_fail("fsync", fd); }

int fdatasync(int fd) { return sync_or_fail("fdatasync", fd); }

static int refused(int fd) {
    struct stat disk, file;
    const char *folder = getenv("WEIR_TEST_DISK");
    if (!folder || !is_set("WEIR_TEST_READ_ONLY") || stat(folder, &disk) || fstat(fd, &file)) return 0;
    if (disk.st_dev != file.st_dev) return 0;
    errno = EROFS;
    return 1;
}

ssize_t write(int fd, const void *bytes, size_t count) {
    if (refused(fd)) return -1;
    ssize_t (*real)(int, const void *, size_t) = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    return real(fd, bytes, count);
}

#define PWRITE(name, offset_type)                                                                      \
    ssize_t name(int fd, const void *bytes, size_t count, offset_type offset) {                         \
        if (refused(fd)) return -1;                                                                    \
        ssize_t (*real)(int, const void *, size_t, offset_type) =                                      \
            (ssize_t (*)(int, const void *, size_t, offset_type))dlsym(RTLD_NEXT, #name);               \
        return real(fd, bytes, count, offset);                                                         \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define FTRUNCATE(name, length_type)                                                                   \
    int name(int fd, length_type length) {                                                             \
        if (refused(fd)) return -1;                                                                    \
        int (*real)(int, length_type) = (int (*)(int, length_type))dlsym(RTLD_NEXT, #name);             \
        return real(fd, length);                                                                       \
    }
FTRUNCATE(ftruncate, off_t)
FTRUNCATE(ftruncate64, off64_t)

/* Opens first and looks then: the file may be anywhere. */
static int open_or_fail(const char *name, const char *path, int flags, mode_t mode) {
    int (*real)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, name);
    int changes = (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT);
    int fd = real(path, changes ? flags & ~O_TRUNC : flags, mode);
    if (fd < 0 || !changes) return fd;
    if (refused(fd)) {
        close(fd);
        errno = EROFS;
        return -1;
    }
    if ((flags & O_TRUNC) && ftruncate(fd, 0) && errno != EINVAL) {
        close(fd);
        return -1;
    }
    return fd;
}

#define OPEN(name)                                                                                     \
    int name(const char *path, int flags, ...) {                                                       \
        va_list rest;                                                                                  \
        va_start(rest, flags);                                                                         \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;                       \
        va_end(rest);                                                                                  \
        return open_or_fail(#name, path, flags, mode);                                                 \
    }
OPEN(open)
OPEN(open64)
