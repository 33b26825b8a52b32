/* Preloaded into the server: a disk that remembers, fails or stops.

   Every operation that changes something below DISK_BASE is done under one lock, so that there is one order of them.
   - DISK_LOG: each of them is appended to this file when it is done, with its data (trace.rs reads it).
   - DISK_CONTROL: a file of 32-bit numbers that the test changes while the server runs: what is to happen, after how many
     operations, with which errno, and how often it did.
   - The disk calls itself DISK_KIND (the number of statfs(2)), or XFS, whatever it is. XFS has a journal, as the
     disks of most boards have; with FAT nothing is relied on.
   - Of a reply, little is on its way: a download stays open whose client does not read, without being large.
   What SQLite maps into memory (-shm) and the lock file are left out: nothing in them is meant to last. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { NOTHING, FAIL_ONCE, FAIL_FROM, KILL };
struct control { volatile int32_t mode, countdown, error, hits; };

static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;
static const char *base;
static size_t base_length;
static int log_fd = -1;
static struct control *control;
static unsigned long kind_of_disk = 0x58465342;

#define REAL(type, name, ...)                              \
    static type (*real)(__VA_ARGS__);                      \
    if (!real)                                             \
        real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

static int real_open(const char *path, int flags)
{
    REAL(int, open64, const char *, int, ...);
    return real(path, flags, 0600);
}

static ssize_t real_write(int fd, const void *data, size_t size)
{
    REAL(ssize_t, write, int, const void *, size_t);
    return real(fd, data, size);
}

__attribute__((constructor)) static void begin(void)
{
    base = getenv("DISK_BASE");
    if (!base)
        return;
    base_length = strlen(base);
    const char *path = getenv("DISK_LOG");
    if (path)
        log_fd = real_open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC);
    path = getenv("DISK_KIND");
    if (path)
        kind_of_disk = strtoul(path, NULL, 0);
    path = getenv("DISK_CONTROL");
    if (path) {
        int fd = real_open(path, O_RDWR | O_CLOEXEC);
        void *page = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (page != MAP_FAILED)
            control = page;
    }
}

static int is_below(const char *path)
{
    if (!base || strncmp(path, base, base_length) || (path[base_length] && path[base_length] != '/'))
        return 0;
    size_t length = strlen(path);
    return !(length > 4 && !strcmp(path + length - 4, "-shm")) && !strstr(path, "/.ankipi.lock");
}

static int is_below_fd(int fd)
{
    char link[64], path[PATH_MAX];
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = base ? readlink(link, path, sizeof path - 1) : -1;
    errno = before;
    if (length <= 0)
        return 0;
    path[length] = 0;
    return is_below(path);
}

/* Whether the operation is to fail; the lock is held. No disk is too full to delete something. */
static int fails(int frees)
{
    if (!control)
        return 0;
    if (control->mode == NOTHING || (frees && control->error == ENOSPC))
        return 0;
    if (control->countdown > 1) {
        control->countdown--;
        return 0;
    }
    control->hits++;
    if (control->mode == KILL)
        kill(getpid(), SIGKILL);
    if (control->mode == FAIL_ONCE)
        control->mode = NOTHING;
    errno = control->error;
    return 1;
}

static void record(char kind, uint64_t inode, uint64_t at, const char *from, const char *to, const void *data, uint32_t size)
{
    if (log_fd < 0)
        return;
    int before = errno;
    uint16_t from_size = from ? strlen(from) : 0, to_size = to ? strlen(to) : 0;
    char head[25];
    head[0] = kind;
    memcpy(head + 1, &inode, 8);
    memcpy(head + 9, &at, 8);
    memcpy(head + 17, &from_size, 2);
    memcpy(head + 19, &to_size, 2);
    memcpy(head + 21, &size, 4);
    struct iovec parts[] = {{head, 25}, {(void *)from, from_size}, {(void *)to, to_size}, {(void *)data, size}};
    REAL(ssize_t, writev, int, const struct iovec *, int);
    if (real(log_fd, parts, 4) != 25 + from_size + to_size + (ssize_t)size)
        abort();
    errno = before;
}

static uint64_t inode_of(int fd)
{
    struct stat file;
    return fstat(fd, &file) ? 0 : file.st_ino;
}

static int do_open(const char *path, int flags, mode_t mode)
{
    REAL(int, open64, const char *, int, ...);
    if (!(flags & (O_CREAT | O_TRUNC)) || !is_below(path))
        return real(path, flags, mode);
    pthread_mutex_lock(&order);
    int was_there = !access(path, F_OK);
    int fd = !was_there && fails(0) ? -1 : real(path, flags, mode);
    if (fd >= 0 && !was_there)
        record('C', inode_of(fd), 0, path, NULL, NULL, 0);
    else if (fd >= 0 && flags & O_TRUNC)
        record('T', inode_of(fd), 0, NULL, NULL, NULL, 0);
    pthread_mutex_unlock(&order);
    return fd;
}

#define OPEN(name)                                                  \
    int name(const char *path, int flags, ...)                      \
    {                                                               \
        va_list rest;                                               \
        va_start(rest, flags);                                      \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;   \
        va_end(rest);                                               \
        return do_open(path, flags, mode);                          \
    }
OPEN(open)
OPEN(open64)

static ssize_t write_at(int fd, const void *data, size_t size, int64_t at)
{
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    return at < 0 ? real_write(fd, data, size) : real(fd, data, size, at);
}

/* At -1: where the descriptor stands. */
static ssize_t do_write(int fd, const void *data, size_t size, int64_t at)
{
    if (!is_below_fd(fd))
        return write_at(fd, data, size, at);
    pthread_mutex_lock(&order);
    int64_t place = at;
    if (at < 0) {
        struct stat file;
        int appends = fcntl(fd, F_GETFL) & O_APPEND && !fstat(fd, &file);
        place = appends ? file.st_size : lseek(fd, 0, SEEK_CUR);
    }
    /* Half of it arrives before the machine stops, or the disk is full. */
    int stops = control && control->mode == KILL && control->countdown <= 1;
    if (stops)
        write_at(fd, data, size / 2, at);
    ssize_t done = fails(0) ? -1 : write_at(fd, data, size, at);
    if (done > 0)
        record('W', inode_of(fd), place, NULL, NULL, data, done);
    pthread_mutex_unlock(&order);
    return done;
}

ssize_t write(int fd, const void *data, size_t size) { return do_write(fd, data, size, -1); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return do_write(fd, data, size, at); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { return do_write(fd, data, size, at); }

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    REAL(ssize_t, writev, int, const struct iovec *, int);
    if (!is_below_fd(fd))
        return real(fd, parts, count);
    /* A part may be written, as by the real one. */
    for (int n = 0; n < count; n++)
        if (parts[n].iov_len)
            return do_write(fd, parts[n].iov_base, parts[n].iov_len, -1);
    return 0;
}

#define ON_FD(name, kind, frees, at, parameters, arguments)    \
    int name parameters                                        \
    {                                                          \
        static int(*real) parameters;                          \
        if (!real)                                             \
            real = (int(*) parameters)dlsym(RTLD_NEXT, #name); \
        if (!is_below_fd(fd))                                  \
            return real arguments;                             \
        pthread_mutex_lock(&order);                            \
        int done = fails(frees) ? -1 : real arguments;         \
        if (!done)                                             \
            record(kind, inode_of(fd), at, NULL, NULL, NULL, 0); \
        pthread_mutex_unlock(&order);                          \
        return done;                                           \
    }
ON_FD(fsync, 'S', 0, 0, (int fd), (fd))
ON_FD(fdatasync, 'S', 0, 0, (int fd), (fd))
ON_FD(syncfs, 'A', 0, 0, (int fd), (fd))
ON_FD(ftruncate, 'T', 1, size, (int fd, off_t size), (fd, size))
ON_FD(ftruncate64, 'T', 1, size, (int fd, off64_t size), (fd, size))

int fstatfs(int fd, struct statfs *found)
{
    REAL(int, fstatfs, int, struct statfs *);
    int done = real(fd, found);
    if (!done && is_below_fd(fd))
        found->f_type = kind_of_disk;
    return done;
}

#define ON_PATH(name, kind, frees, from, to, parameters, arguments) \
    int name parameters                                        \
    {                                                          \
        static int(*real) parameters;                          \
        if (!real)                                             \
            real = (int(*) parameters)dlsym(RTLD_NEXT, #name); \
        if (!is_below(from))                                   \
            return real arguments;                             \
        pthread_mutex_lock(&order);                            \
        int done = fails(frees) ? -1 : real arguments;         \
        struct stat file;                                      \
        if (!done)                                             \
            record(kind, kind == 'M' && !stat(from, &file) ? file.st_ino : 0, 0, from, to, NULL, 0); \
        pthread_mutex_unlock(&order);                          \
        return done;                                           \
    }
ON_PATH(rename, 'R', 0, from, to, (const char *from, const char *to), (from, to))
ON_PATH(unlink, 'U', 1, path, NULL, (const char *path), (path))
ON_PATH(mkdir, 'M', 0, path, NULL, (const char *path, mode_t mode), (path, mode))

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    REAL(int, accept4, int, struct sockaddr *, socklen_t *, int);
    int accepted = real(fd, address, length, flags), bytes = 32 << 10;
    if (accepted >= 0)
        setsockopt(accepted, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    return accepted;
}
