/* A file layer that dies at the n-th thing it is asked to do to a file.

   Loaded before libc (LD_PRELOAD) into the process that the tests kill. Counts every write, sync,
   truncation, renaming and removal of regular files from arm() on, whoever asks: SQLite, Python or
   a library. At the n-th the process is gone, as by SIGKILL; torn, after half of the bytes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static long left = -1; /* calls until the end; below 0: unarmed */
static int torn;

void arm(long calls, int half) { left = calls; torn = half; }
long calls_left(void) { return left; }

static void *libc(const char *name) { return dlsym(RTLD_NEXT, name); }

static int is_file(int fd) {
    struct stat facts;
    return fstat(fd, &facts) == 0 && S_ISREG(facts.st_mode);
}

static int is_due(void) { return left >= 0 && left-- == 0; }

static void die(void) { kill(getpid(), SIGKILL); }

#define WRITE(name, type, ...)                                                                     \
    typedef ssize_t name##_type type;                                                              \
    static name##_type *real_##name;                                                               \
    if (!real_##name) real_##name = (name##_type *)libc(#name);                                    \
    if (is_file(fd) && is_due()) {                                                                 \
        size_t all = size;                                                                         \
        size = all / 2;                                                                            \
        if (torn && size) real_##name(__VA_ARGS__);                                                \
        die();                                                                                     \
    }                                                                                              \
    return real_##name(__VA_ARGS__);

ssize_t write(int fd, const void *bytes, size_t size) {
    WRITE(write, (int, const void *, size_t), fd, bytes, size)
}
ssize_t pwrite(int fd, const void *bytes, size_t size, off_t at) {
    WRITE(pwrite, (int, const void *, size_t, off_t), fd, bytes, size, at)
}
ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t at) {
    WRITE(pwrite64, (int, const void *, size_t, off64_t), fd, bytes, size, at)
}

#define CALL(name, type, ...)                                                                      \
    typedef int name##_type type;                                                                  \
    static name##_type *real_##name;                                                               \
    if (!real_##name) real_##name = (name##_type *)libc(#name);                                    \
    if (is_due()) die();                                                                           \
    return real_##name(__VA_ARGS__);

int fsync(int fd) { CALL(fsync, (int), fd) }
int fdatasync(int fd) { CALL(fdatasync, (int), fd) }
int ftruncate(int fd, off_t size) { CALL(ftruncate, (int, off_t), fd, size) }
int ftruncate64(int fd, off64_t size) { CALL(ftruncate64, (int, off64_t), fd, size) }
int rename(const char *old, const char *new) { CALL(rename, (const char *, const char *), old, new) }
int unlink(const char *path) { CALL(unlink, (const char *), path) }
