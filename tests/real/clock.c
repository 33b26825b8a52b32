/* Preloaded into the server: its wall clock is the real one plus the seconds in the file CLOCK_OFFSET_FILE, so that a test can
   set it while the server runs. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *time)
{
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int outcome = real(clock, time);
    const char *path = getenv("CLOCK_OFFSET_FILE");
    FILE *file = outcome == 0 && clock == CLOCK_REALTIME && path ? fopen(path, "r") : NULL;
    if (file) {
        long long offset = 0;
        if (fscanf(file, "%lld", &offset) == 1)
            time->tv_sec += offset;
        fclose(file);
    }
    return outcome;
}

/* What SQLite asks. */
int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    (void)zone;
    struct timespec time;
    int outcome = clock_gettime(CLOCK_REALTIME, &time);
    now->tv_sec = time.tv_sec;
    now->tv_usec = time.tv_nsec / 1000;
    return outcome;
}
