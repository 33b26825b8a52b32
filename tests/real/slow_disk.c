/* Preloaded into the server: a disk that is slow when an uploaded file is read back.

   The first read of each file whose name contains "upload" sleeps SLOW_DISK_SECS; a server reads such a file only to check
   it. Several processes can be slow at once, and each only where it would be on an old card. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static ino_t slowed[64];
static int slowed_count;

static void slow_down(int fd)
{
    char link[64], name[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, name, sizeof name - 1);
    if (length <= 0)
        return;
    name[length] = 0;
    const char *base = strrchr(name, '/');
    if (!base || !strstr(base, "upload"))
        return;
    struct stat file;
    if (fstat(fd, &file) || file.st_size == 0)
        return;
    /* No lock: the story uploads one file at a time to each server. */
    for (int n = 0; n < slowed_count; n++)
        if (slowed[n] == file.st_ino)
            return;
    if (slowed_count == 64)
        return;
    slowed[slowed_count++] = file.st_ino;
    const char *secs = getenv("SLOW_DISK_SECS");
    fprintf(stderr, "slow_disk: %s seconds for %s\n", secs, base + 1);
    for (unsigned left = secs ? atoi(secs) : 0; left;)
        left = sleep(left);
}

#define SLOW(name, arguments, call)                                     \
    ssize_t name arguments                                                   \
    {                                                                        \
        static ssize_t(*real) arguments;                                     \
        if (!real)                                                           \
            real = (ssize_t(*) arguments)dlsym(RTLD_NEXT, #name);            \
        slow_down(fd);                                                       \
        return real call;                                                    \
    }

SLOW(read, (int fd, void *to, size_t size), (fd, to, size))
SLOW(pread, (int fd, void *to, size_t size, off_t at), (fd, to, size, at))
SLOW(pread64, (int fd, void *to, size_t size, off64_t at), (fd, to, size, at))
