// The wrappers. What the kernel can do to a file otherwise (sendfile, writev, shared mappings that
// are written) is not here; a replayed record that differs from the folder would show its use.
#include "shim.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef RENAME_EXCHANGE
#define RENAME_EXCHANGE 2
#endif

#define SAME(alias_, name) __typeof__(name) alias_ __attribute__((alias(#name)))

// ---- opening and closing -----------------------------------------------------------------------

static int open_at(int folder, const char* name, int flags, mode_t mode) {
    struct Call call;
    about_path(&call, flags & O_CREAT ? "create" : "open", folder, name);
    call.offset = flags;
    RUN(int, REAL(openat)(folder, name, flags, mode));
}

#define MODE(last)                                                                                 \
    mode_t mode = 0;                                                                               \
    if ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE) {                                   \
        va_list rest;                                                                              \
        va_start(rest, last);                                                                      \
        mode = va_arg(rest, mode_t);                                                               \
        va_end(rest);                                                                              \
    }

int open(const char* name, int flags, ...) {
    MODE(flags)
    return open_at(AT_FDCWD, name, flags, mode);
}
SAME(open64, open);

int openat(int folder, const char* name, int flags, ...) {
    MODE(flags)
    return open_at(folder, name, flags, mode);
}
SAME(openat64, openat);

int creat(const char* name, mode_t mode) {
    return open_at(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
SAME(creat64, creat);

int close(int descriptor) {
    struct Call call;
    about_descriptor(&call, "close", descriptor);
    const bool fails = meet(&call) == FAIL;
    int result = REAL(close)(descriptor);
    if (fails) { // and has closed all the same, as Linux does
        errno = call.code;
        result = -1;
    }
    return (int)leave(&call, result);
}

int flock(int descriptor, int operation) {
    struct Call call;
    about_descriptor(&call, "flock", descriptor);
    RUN(int, REAL(flock)(descriptor, operation));
}

// ---- reading and writing -----------------------------------------------------------------------

ssize_t read(int descriptor, void* to, size_t count) {
    struct Call call;
    about_descriptor(&call, "read", descriptor);
    RUN(ssize_t, REAL(read)(descriptor, to, part(&call, count)));
}

ssize_t pread(int descriptor, void* to, size_t count, off_t offset) {
    struct Call call;
    about_descriptor(&call, "pread", descriptor);
    RUN(ssize_t, REAL(pread)(descriptor, to, part(&call, count), offset));
}
SAME(pread64, pread);

static ssize_t write_on(struct Call* call, int descriptor, const void* from, size_t count) {
    const ssize_t wrote = REAL(write)(descriptor, from, count);
    if (call->recorded && wrote >= 0) {
        call->offset = lseek(descriptor, 0, SEEK_CUR) - wrote;
    }
    return wrote;
}

ssize_t write(int descriptor, const void* from, size_t count) {
    struct Call call;
    about_descriptor(&call, "write", descriptor);
    call.data = from;
    RUN(ssize_t, write_on(&call, descriptor, from, part(&call, count)));
}

ssize_t pwrite(int descriptor, const void* from, size_t count, off_t offset) {
    struct Call call;
    about_descriptor(&call, "pwrite", descriptor);
    call.offset = offset;
    call.data = from;
    RUN(ssize_t, REAL(pwrite)(descriptor, from, part(&call, count), offset));
}
SAME(pwrite64, pwrite);

// ---- sizes and durability ----------------------------------------------------------------------

int fallocate(int descriptor, int mode, off_t offset, off_t length) {
    struct Call call;
    about_descriptor(&call, mode == 0 ? "fallocate" : "fallocate mode", descriptor);
    call.offset = offset;
    call.length = length;
    RUN(int, REAL(fallocate)(descriptor, mode, offset, length));
}
SAME(fallocate64, fallocate);

int posix_fallocate(int descriptor, off_t offset, off_t length) {
    return fallocate(descriptor, 0, offset, length) == 0 ? 0 : errno;
}
SAME(posix_fallocate64, posix_fallocate);

int ftruncate(int descriptor, off_t length) {
    struct Call call;
    about_descriptor(&call, "ftruncate", descriptor);
    call.length = length;
    RUN(int, REAL(ftruncate)(descriptor, length));
}
SAME(ftruncate64, ftruncate);

int fsync(int descriptor) {
    struct Call call;
    about_descriptor(&call, "fsync", descriptor);
    RUN(int, REAL(fsync)(descriptor));
}

int fdatasync(int descriptor) {
    struct Call call;
    about_descriptor(&call, "fdatasync", descriptor);
    RUN(int, REAL(fdatasync)(descriptor));
}

int sync_file_range(int descriptor, off64_t offset, off64_t length, unsigned flags) {
    struct Call call;
    about_descriptor(&call, "sync_file_range", descriptor);
    RUN(int, REAL(sync_file_range)(descriptor, offset, length, flags));
}

// ---- names -------------------------------------------------------------------------------------

int renameat2(int from, const char* old, int to, const char* new, unsigned flags) {
    struct Call call;
    about_path(&call, flags == RENAME_EXCHANGE ? "exchange" : "rename", from, old);
    and_path(&call, to, new);
    RUN(int, REAL(renameat2)(from, old, to, new, flags));
}

int renameat(int from, const char* old, int to, const char* new) {
    return renameat2(from, old, to, new, 0);
}

int rename(const char* old, const char* new) {
    return renameat2(AT_FDCWD, old, AT_FDCWD, new, 0);
}

int linkat(int from, const char* old, int to, const char* new, int flags) {
    struct Call call;
    about_path(&call, "link", from, old);
    and_path(&call, to, new);
    RUN(int, REAL(linkat)(from, old, to, new, flags));
}

int link(const char* old, const char* new) {
    return linkat(AT_FDCWD, old, AT_FDCWD, new, 0);
}

int unlinkat(int folder, const char* name, int flags) {
    struct Call call;
    about_path(&call, flags & AT_REMOVEDIR ? "rmdir" : "unlink", folder, name);
    RUN(int, REAL(unlinkat)(folder, name, flags));
}

int unlink(const char* name) {
    return unlinkat(AT_FDCWD, name, 0);
}

int rmdir(const char* name) {
    return unlinkat(AT_FDCWD, name, AT_REMOVEDIR);
}

int mkdirat(int folder, const char* name, mode_t mode) {
    struct Call call;
    about_path(&call, "mkdir", folder, name);
    RUN(int, REAL(mkdirat)(folder, name, mode));
}

int mkdir(const char* name, mode_t mode) {
    return mkdirat(AT_FDCWD, name, mode);
}

// The compiled core exchanges names by the system call's number.
long syscall(long number, ...) {
    long a[6];
    va_list rest;
    va_start(rest, number);
    for (int i = 0; i < 6; ++i) {
        a[i] = va_arg(rest, long);
    }
    va_end(rest);
    if (number == SYS_renameat2) {
        return renameat2((int)a[0], (const char*)a[1], (int)a[2], (const char*)a[3],
                         (unsigned)a[4]);
    }
    return REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

// ---- mappings ----------------------------------------------------------------------------------

enum { MAPPINGS = 256 };

static struct {
    char* start;
    size_t length;
    char path[PATH_MAX];
} mappings[MAPPINGS];
static pthread_mutex_t mapping = PTHREAD_MUTEX_INITIALIZER;

static void* map(struct Call* call, void* at, size_t n, int protection, int flags, int fd,
                 off_t o) {
    char* const found = REAL(mmap)(at, n, protection, flags, fd, o);
    if (call->counted && found != MAP_FAILED) {
        pthread_mutex_lock(&mapping);
        size_t i = 0;
        while (mappings[i].start != NULL) {
            ++i; // a run of the tests has a dozen
        }
        mappings[i].start = found;
        mappings[i].length = n;
        snprintf(mappings[i].path, PATH_MAX, "%s", call->path);
        pthread_mutex_unlock(&mapping);
    }
    return found;
}

void* mmap(void* at, size_t n, int protection, int flags, int descriptor, off_t offset) {
    struct Call call;
    about_descriptor(&call, "mmap", descriptor);
    RUN(void*, map(&call, at, n, protection, flags, descriptor, offset));
}
SAME(mmap64, mmap);

static size_t mapping_of(const char* address) {
    size_t i = 0;
    while (i < MAPPINGS && (mappings[i].start == NULL || address < mappings[i].start ||
                            address >= mappings[i].start + mappings[i].length)) {
        ++i;
    }
    return i;
}

int madvise(void* start, size_t length, int advice) {
    const char* op = "madvise";
    op = advice == MADV_WILLNEED ? "announce" : advice == MADV_DONTNEED ? "release" : op;
    op = advice == MADV_POPULATE_READ ? "populate" : op;
    struct Call call;
    pthread_mutex_lock(&mapping);
    const size_t i = mapping_of(start);
    about_counted(&call, op, i < MAPPINGS ? mappings[i].path : NULL);
    pthread_mutex_unlock(&mapping);
    RUN(int, REAL(madvise)(start, length, advice));
}

int munmap(void* start, size_t length) {
    pthread_mutex_lock(&mapping);
    const size_t i = mapping_of(start);
    if (i < MAPPINGS) {
        mappings[i].start = NULL;
    }
    pthread_mutex_unlock(&mapping);
    return REAL(munmap)(start, length);
}
