/* Preloaded into a process (LD_PRELOAD): lets the n-th file operation below a folder fail, once, as a disk or server would.
 *
 * Wrapped are the functions of the C library by which CPython reaches files. `fault_arm` begins to count, `fault_name`
 * says what failed. Which errors a call may give is from the ERRORS sections of Linux' manual pages.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[4096], failed[4400];
static long fail_at = -1;
static int salt;
static atomic_long count;

static const int OPEN[] = {EIO, EACCES, EMFILE, ESTALE}, MAKE[] = {ENOSPC, EACCES, EMFILE, ENAMETOOLONG};
static const int READ[] = {EIO, ESTALE, EIO, ESTALE}, WRITE[] = {ENOSPC, EIO, EDQUOT, EFBIG}, SYNC[] = {EIO, ENOSPC, EIO, EINVAL};
static const int MOVE[] = {EIO, EACCES, ENOSPC, EBUSY}, LINK[] = {EPERM, EIO, ENOSYS, EOPNOTSUPP}, DEL[] = {EACCES, EIO, EBUSY, EROFS};
static const int LOOK[] = {EACCES, EIO, ESTALE, ENAMETOOLONG};

void fault_arm(const char *below, long n, int which) {
    snprintf(folder, sizeof folder, "%s", below);
    failed[0] = 0;
    atomic_store(&count, 0);
    salt = which;
    fail_at = n;
}
long fault_count(void) { return atomic_load(&count); }
const char *fault_name(void) { return failed; }

static int below(int at, const char *path) {
    char place[4096], link[64];
    if (!folder[0]) return 0;
    if (path == NULL || path[0] != '/') {
        snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        long n = at < 0 ? -1 : syscall(SYS_readlink, link, place, sizeof place - 1);
        if (n < 0) return 0;
        place[n] = 0;
        path = place;
    }
    return strncmp(path, folder, strlen(folder)) == 0;
}
static int fails(const char *call, int at, const char *path, const int *errors) {
    if (!below(at, path)) return 0;
    int saved = errno;
    if (atomic_fetch_add(&count, 1) != fail_at) { errno = saved; return 0; }
    snprintf(failed, sizeof failed, "%s: %s (%s)", call, strerror(errors[salt % 4]), path ? path : "a descriptor");
    errno = errors[salt % 4];
    return 1;
}
#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(real))dlsym(RTLD_NEXT, #name)
#define OPENS(name, parameters, at, arguments) \
    int name parameters { \
        va_list rest; va_start(rest, flags); int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0; va_end(rest); \
        REAL(name); \
        return fails(#name, at, path, flags & O_CREAT ? MAKE : OPEN) ? -1 : real arguments; }
#define CALL(type, name, parameters, at, path, errors, arguments) \
    type name parameters { REAL(name); return fails(#name, at, path, errors) ? (type)-1 : real arguments; }

OPENS(open, (const char *path, int flags, ...), -1, (path, flags, mode))
OPENS(open64, (const char *path, int flags, ...), -1, (path, flags, mode))
OPENS(openat, (int at, const char *path, int flags, ...), at, (at, path, flags, mode))
OPENS(openat64, (int at, const char *path, int flags, ...), at, (at, path, flags, mode))
CALL(ssize_t, read, (int fd, void *to, size_t n), fd, NULL, READ, (fd, to, n))
CALL(ssize_t, preadv64, (int fd, const struct iovec *to, int n, off64_t place), fd, NULL, READ, (fd, to, n, place))
CALL(ssize_t, preadv64v2, (int fd, const struct iovec *to, int n, off64_t place, int flags), fd, NULL, READ, (fd, to, n, place, flags))
CALL(ssize_t, write, (int fd, const void *from, size_t n), fd, NULL, WRITE, (fd, from, n))
CALL(ssize_t, writev, (int fd, const struct iovec *from, int n), fd, NULL, WRITE, (fd, from, n))
CALL(ssize_t, pwritev64, (int fd, const struct iovec *from, int n, off64_t place), fd, NULL, WRITE, (fd, from, n, place))
CALL(ssize_t, pwritev64v2, (int fd, const struct iovec *from, int n, off64_t place, int flags), fd, NULL, WRITE, (fd, from, n, place, flags))
CALL(int, fsync, (int fd), fd, NULL, SYNC, (fd))
CALL(int, rename, (const char *from, const char *to), -1, to, MOVE, (from, to))
CALL(int, link, (const char *from, const char *to), -1, to, LINK, (from, to))
CALL(int, unlink, (const char *path), -1, path, DEL, (path))
CALL(int, unlinkat, (int at, const char *path, int flags), at, path, DEL, (at, path, flags))
CALL(int, rmdir, (const char *path), -1, path, DEL, (path))
CALL(int, mkdir, (const char *path, mode_t mode), -1, path, MAKE, (path, mode))
CALL(int, stat64, (const char *path, struct stat64 *to), -1, path, LOOK, (path, to))
CALL(int, lstat64, (const char *path, struct stat64 *to), -1, path, LOOK, (path, to))
CALL(int, fstatat64, (int at, const char *path, struct stat64 *to, int flags), at, path, LOOK, (at, path, to, flags))
CALL(int, fstat64, (int fd, struct stat64 *to), fd, NULL, LOOK, (fd, to))
DIR *opendir(const char *path) { REAL(opendir); return fails("opendir", -1, path, OPEN) ? NULL : real(path); }
DIR *fdopendir(int fd) { REAL(fdopendir); return fails("fdopendir", fd, NULL, OPEN) ? NULL : real(fd); }
