// System calls on files below one folder: counted, failed, cut short, killed at, recorded.
//
// Loaded with LD_PRELOAD, steered through the shim_* functions. A call is known by its operation,
// its path below the root, and how many like it came before: whatever order threads run in, that is
// the same call. Paths are asked of the kernel each time, so no descriptor has to be followed.
#pragma once

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

enum Way {
    PASS,
    FAIL,    // with the code, an errno; nothing is done
    SHORTEN, // half of the bytes
    FULL,    // the disk is, from this call on
    BEFORE,  // the code, a signal, then the call
    AFTER,   // the call, then the signal
    TORN,    // half of the bytes, then the signal
};

struct Call {
    const char* op;
    bool counted, recorded;
    char path[PATH_MAX], other[PATH_MAX]; // below the root
    long offset, length;
    const void* data;
    enum Way way;
    int code; // errno, where it fails
};

void about_path(struct Call* call, const char* op, int folder, const char* name);
void about_descriptor(struct Call* call, const char* op, int descriptor);
void about_counted(struct Call* call, const char* op, const char* path); // below the root, or NULL
void and_path(struct Call* call, int folder, const char* name);

// Decides what is done about a call. Where it is recorded, the turn is taken until it is left: the
// record has the calls in their order.
enum Way meet(struct Call* call);
long leave(const struct Call* call, long result);
size_t part(const struct Call* call, size_t count);

#define REAL(name)                                                                                 \
    ({                                                                                             \
        static __typeof__(&name) real;                                                             \
        if (real == NULL) {                                                                        \
            real = (__typeof__(&name))dlsym(RTLD_NEXT, #name);                                     \
        }                                                                                          \
        real;                                                                                      \
    })

// The body of a wrapper, once its `call` is described.
#define RUN(type, expression)                                                                      \
    do {                                                                                           \
        type result = (type) - 1;                                                                  \
        if (meet(&call) == FAIL) {                                                                 \
            errno = call.code;                                                                     \
        } else {                                                                                   \
            result = (expression);                                                                 \
        }                                                                                          \
        return (type)leave(&call, (long)result);                                                   \
    } while (0)
