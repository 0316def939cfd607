/* Preloaded into a process that writes a file (Linux). From faulty_arm() on, its system calls on files are counted and
   noted, and at one of them, which is said by its number, something happens: it fails, it writes less than asked, or
   the process is killed or stopped just before it. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, FAIL, FULL, SHORT, TORN, KILL, STOP }; /* as in test_killed_saves.py */

static struct {
    int act, error;    /* what happens, and the errno of FAIL and FULL */
    long at, calls;    /* at which call, 0 for none; how many there were */
    const char *name;  /* the call that it happened to, else NULL */
    char log[1 << 16]; /* a line for every call: its name and its file */
    size_t end;
} now;

void faulty_arm(int act, int error, long at)
{
    now.calls = now.end = 0;
    now.name = NULL;
    now.act = act;
    now.error = error;
    now.at = at;
    now.log[0] = 0;
}

long faulty_calls(void) { return now.calls; }
const char *faulty_name(void) { return now.name; }
const char *faulty_log(void) { return now.log; }

static void note(const char *name, int fd, const char *path)
{
    char link[32], file[4096];
    if (path == NULL) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(link, file, sizeof file - 1);
        file[n < 0 ? 0 : n] = 0;
        path = file;
    }
    int n = snprintf(now.log + now.end, sizeof now.log - now.end, "%s %s\n", name, path);
    if (n > 0 && now.end + (size_t)n < sizeof now.log)
        now.end += (size_t)n;
}

/* Count a call; whether it is to fail. A disk that is FULL stays full, for all that needs room. */
static int fails(const char *name, int fd, const char *path, int needs_room)
{
    long call = ++now.calls;
    int error = errno;
    note(name, fd, path);
    errno = error;
    if (now.at == 0 || call < now.at)
        return 0;
    if (call == now.at) {
        now.name = name;
        if (now.act == KILL || now.act == STOP)
            kill(getpid(), now.act == KILL ? SIGKILL : SIGSTOP);
    }
    if ((now.act == FAIL && call == now.at) || (now.act == FULL && needs_room)) {
        errno = now.error;
        return 1;
    }
    return 0;
}

/* Whether the call that was just counted writes only a part. */
static int partly(void) { return now.calls == now.at && (now.act == SHORT || now.act == TORN); }

static ssize_t after_part(ssize_t written)
{
    if (now.act == TORN)
        kill(getpid(), SIGKILL);
    return written;
}

#define REAL(f) ((__typeof__(&f))dlsym(RTLD_NEXT, #f))
#define CALL(f, declared, args, fd, path, needs_room) \
    int f declared { return fails(#f, fd, path, needs_room) ? -1 : REAL(f) args; }
#define OPEN(f) CALL_OPEN(f, (const char *path, int flags, ...), (path, flags, mode))
#define OPENAT(f) CALL_OPEN(f, (int dir, const char *path, int flags, ...), (dir, path, flags, mode))
#define CALL_OPEN(f, declared, args) \
    int f declared \
    { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        return fails(#f, -1, path, flags & O_CREAT) ? -1 : REAL(f) args; \
    }
#define WRITE(f, declared, args, half) \
    ssize_t f declared \
    { \
        if (fails(#f, fd, NULL, 1)) \
            return -1; \
        return partly() ? after_part(REAL(f) half) : REAL(f) args; \
    }

CALL(fsync, (int fd), (fd), fd, NULL, 1)
CALL(fdatasync, (int fd), (fd), fd, NULL, 1)
CALL(ftruncate, (int fd, off_t n), (fd, n), fd, NULL, 1)
CALL(fchmod, (int fd, mode_t mode), (fd, mode), fd, NULL, 0)
CALL(flock, (int fd, int how), (fd, how), fd, NULL, 0)
CALL(chmod, (const char *path, mode_t mode), (path, mode), -1, path, 0)
CALL(fchmodat, (int dir, const char *path, mode_t mode, int flags), (dir, path, mode, flags), -1, path, 0)
CALL(mkdir, (const char *path, mode_t mode), (path, mode), -1, path, 1)
CALL(rmdir, (const char *path), (path), -1, path, 0)
CALL(unlink, (const char *path), (path), -1, path, 0)
CALL(unlinkat, (int dir, const char *path, int flags), (dir, path, flags), -1, path, 0)
CALL(link, (const char *from, const char *to), (from, to), -1, to, 1)
CALL(linkat, (int a, const char *from, int b, const char *to, int how), (a, from, b, to, how), -1, to, 1)
CALL(rename, (const char *from, const char *to), (from, to), -1, to, 1)
CALL(renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), -1, to, 1)
CALL(renameat2, (int a, const char *from, int b, const char *to, unsigned how), (a, from, b, to, how), -1, to, 1)
OPEN(open)
OPENAT(openat)
WRITE(write, (int fd, const void *data, size_t n), (fd, data, n), (fd, data, (n + 1) / 2))
WRITE(pwrite, (int fd, const void *data, size_t n, off_t at), (fd, data, n, at), (fd, data, (n + 1) / 2, at))
WRITE(writev, (int fd, const struct iovec *parts, int n), (fd, parts, n), (fd, parts, (n + 1) / 2))

#ifdef __GLIBC__ /* elsewhere these are the same functions */
CALL(ftruncate64, (int fd, off64_t n), (fd, n), fd, NULL, 1)
OPEN(open64)
OPENAT(openat64)
WRITE(pwrite64, (int fd, const void *data, size_t n, off64_t at), (fd, data, n, at), (fd, data, (n + 1) / 2, at))
#endif

ssize_t read(int fd, void *data, size_t n) { return fails("read", fd, NULL, 0) ? -1 : REAL(read)(fd, data, n); }

/* Only that of a file, and it is closed all the same, as on Linux. */
int close(int fd)
{
    struct stat what;
    int ordinary = fstat(fd, &what) == 0 && S_ISREG(what.st_mode);
    int failed = ordinary && fails("close", fd, NULL, 0), error = errno;
    int result = REAL(close)(fd);
    if (failed)
        errno = error;
    return failed ? -1 : result;
}
