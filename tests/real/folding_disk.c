/* Preloaded into the server: a disk that does not tell case apart, in the folder of the media.

   As on FAT, "A.jpg" is the file "a.jpg". As on FAT without utf8, names beyond 16 bits of Unicode are invalid; as on eCryptfs,
   long names are too long: here over 100 bytes, as the client makes none of over 120. */

#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* The path that the disk uses, or none if it cannot hold the name. */
static const char *folded(const char *path, char *to, size_t size)
{
    const char *name = path ? strcasestr(path, "/media") : NULL;
    if (!name || strlen(path) >= size || (name[6] && name[6] != '/'))
        return path;
    if (!name[6]) {
        sprintf(to, "%.*s/media", (int)(name - path), path);
        return to;
    }
    name += strlen("/media/");
    strcpy(to, path);
    if (strlen(name) > 100) {
        errno = ENAMETOOLONG;
        return NULL;
    }
    for (char *at = to + (name - path); *at; at++) {
        if ((unsigned char)*at >= 0xf0) {
            errno = EINVAL;
            return NULL;
        }
        *at = tolower((unsigned char)*at);
    }
    return to;
}

#define FOLD(path) char path##_buffer[4096]; path = folded(path, path##_buffer, sizeof path##_buffer); if (!path) return -1

int rename(const char *from, const char *to)
{
    REAL(rename);
    FOLD(from);
    FOLD(to);
    return real(from, to);
}

int unlink(const char *path)
{
    REAL(unlink);
    FOLD(path);
    return real(path);
}

int statx(int dir, const char *restrict path, int flags, unsigned mask, struct statx *restrict to)
{
    REAL(statx);
    FOLD(path);
    return real(dir, path, flags, mask, to);
}

static int opened(int (*real)(const char *, int, ...), const char *path, int flags, mode_t mode)
{
    FOLD(path);
    return real(path, flags, mode);
}

#define OPEN(name)                                                    \
    int name(const char *path, int flags, ...)                        \
    {                                                                 \
        REAL(name);                                                   \
        va_list rest;                                                 \
        va_start(rest, flags);                                        \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;     \
        va_end(rest);                                                 \
        return opened(real, path, flags, mode);                       \
    }

OPEN(open)
OPEN(open64)
