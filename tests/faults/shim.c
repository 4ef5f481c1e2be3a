// What a call is about, what is done about it, and how that is steered.
#include "shim.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static int record = -1;
static bool with_data;

static struct {
    char op[16], path[PATH_MAX];
    long nth;
    enum Way way;
    int code; // an errno or a signal
} wanted;
static long seen;  // calls like the wanted one
static long fired; // times that something was done about one
static bool full;

static struct {
    char op[16];
    int code;
} lacking;

// ---- where -------------------------------------------------------------------------------------

static bool below_root(char* path) {
    const size_t length = strlen(root);
    if (length == 0 || strncmp(path, root, length) != 0 || path[length] != '/') {
        return false;
    }
    memmove(path, path + length + 1, strlen(path + length));
    return true;
}

static bool of_descriptor(char* path, int descriptor) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    const ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = '\0';
    return length > 0;
}

static bool of_name(char* path, int folder, const char* name) {
    path[0] = '\0';
    if (name[0] != '/') {
        if (folder == AT_FDCWD ? getcwd(path, PATH_MAX) == NULL : !of_descriptor(path, folder)) {
            return false;
        }
        strncat(path, "/", PATH_MAX - strlen(path) - 1);
    }
    strncat(path, name, PATH_MAX - strlen(path) - 1);
    return true;
}

static void describe(struct Call* call, const char* op) {
    call->op = op;
    call->counted = call->recorded = false;
    call->path[0] = call->other[0] = '\0';
    call->offset = call->length = 0;
    call->data = NULL;
    call->way = PASS;
}

void about_path(struct Call* call, const char* op, int folder, const char* name) {
    const int before = errno;
    describe(call, op);
    call->counted = root[0] && of_name(call->path, folder, name) && below_root(call->path);
    errno = before;
}

void about_descriptor(struct Call* call, const char* op, int descriptor) {
    const int before = errno;
    describe(call, op);
    call->counted = root[0] && descriptor >= 0 && of_descriptor(call->path, descriptor) &&
                    below_root(call->path);
    errno = before;
}

void about_counted(struct Call* call, const char* op, const char* path) {
    describe(call, op);
    call->counted = path != NULL;
    snprintf(call->path, PATH_MAX, "%s", path != NULL ? path : "");
}

void and_path(struct Call* call, int folder, const char* name) {
    const bool inside = root[0] && of_name(call->other, folder, name) && below_root(call->other);
    call->counted = inside || call->counted;
}

// ---- what is done ------------------------------------------------------------------------------

static bool takes_space(const char* op) {
    static const char* const all[] = {"write", "pwrite", "fallocate", "create", "mkdir", "link"};
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i) {
        if (strcmp(op, all[i]) == 0) {
            return true;
        }
    }
    return false;
}

enum Way meet(struct Call* call) {
    if (!call->counted) {
        return PASS;
    }
    pthread_mutex_lock(&turn);
    if (strcmp(call->op, wanted.op) == 0 && strcmp(call->path, wanted.path) == 0 &&
        seen++ == wanted.nth) {
        ++fired;
        call->way = wanted.way;
        full = wanted.way == FULL;
    }
    call->code = wanted.code;
    if (full) {
        call->way = takes_space(call->op) ? FAIL : PASS;
        call->code = ENOSPC;
    } else if (call->way == PASS && strcmp(call->op, lacking.op) == 0) {
        call->way = FAIL;
        call->code = lacking.code;
    }
    call->recorded = record >= 0;
    if (!call->recorded) {
        pthread_mutex_unlock(&turn);
    }
    if (call->way == BEFORE) {
        kill(getpid(), wanted.code);
    }
    return call->way;
}

size_t part(const struct Call* call, size_t count) {
    const bool shorter = call->way == SHORTEN || call->way == TORN;
    return shorter && count > 1 ? count / 2 : count;
}

static void write_down(const struct Call* call, long result) {
    const long bytes = with_data && call->data != NULL && result > 0 ? result : 0;
    dprintf(record, "%s\t%ld\t%ld\t%ld\t%ld\t%s\t%s\n", call->op, result, call->offset,
            call->length, bytes, call->path, call->other);
    for (long done = 0; done < bytes;) {
        const ssize_t wrote = write(record, (const char*)call->data + done, bytes - done);
        if (wrote < 0) {
            abort();
        }
        done += wrote;
    }
}

long leave(const struct Call* call, long result) {
    const int code = errno;
    if (call->recorded) {
        write_down(call, result);
        pthread_mutex_unlock(&turn);
    }
    if (call->way == AFTER || call->way == TORN) {
        kill(getpid(), wanted.code);
    }
    errno = code;
    return result;
}

// ---- how it is steered -------------------------------------------------------------------------

// Calls count below this folder, a real path; nothing counts below "".
void shim_root(const char* path) {
    snprintf(root, sizeof root, "%s", path);
}

// Every call becomes a line in a file, with what it writes behind it if asked for; −1: no more.
void shim_record(int descriptor, int data) {
    record = descriptor;
    with_data = data;
}

void shim_want(const char* op, const char* path, long nth, int way, int code) {
    snprintf(wanted.op, sizeof wanted.op, "%s", op);
    snprintf(wanted.path, sizeof wanted.path, "%s", path);
    wanted.nth = nth;
    wanted.way = (enum Way)way;
    wanted.code = code;
    seen = fired = 0;
    full = false;
}

// The file system cannot do this at all.
void shim_lack(const char* op, int code) {
    snprintf(lacking.op, sizeof lacking.op, "%s", op);
    lacking.code = code;
}

long shim_fired(void) {
    return fired;
}

// The kernel sends SIGKILL after so long, whatever the process does meanwhile.
int shim_kill_after(long microseconds) {
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL};
    const struct itimerspec when = {
        .it_value = {microseconds / 1000000, microseconds % 1000000 * 1000 + 1},
    };
    timer_t timer;
    return timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, 0, &when, NULL);
}
