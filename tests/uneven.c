/* A machine on which nothing is even: LD_PRELOAD=uneven.so COMMAND. One call in LATE_ONE_IN comes late by up to LATE_MS, and poll
 * tells of a ready socket only the next time, now and then, if it has another one to tell of. The kernel may do both. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static unsigned number(const char *name, unsigned standard) {
	const char *value = getenv(name);
	return value ? strtoul(value, NULL, 10) : standard;
}

/* xorshift, a series for each thread. */
static unsigned below(unsigned limit) {
	static __thread uint64_t state;
	if (!state) {
		struct timespec now;
		clock_gettime(CLOCK_MONOTONIC, &now);
		state = ((uint64_t)now.tv_nsec << 20 ^ (uintptr_t)&state) | 1;
	}
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return limit ? (state >> 16) % limit : 0;
}

static void be_late(void) {
	static unsigned one_in, ms;
	if (!one_in) {
		ms = number("LATE_MS", 30);
		one_in = number("LATE_ONE_IN", 30);
	}
	if (below(one_in) == 0) {
		struct timespec pause = {0, below(ms * 1000) * 1000L};
		nanosleep(&pause, NULL);
	}
}

#define LATE(result, name, parameters, arguments) \
	result name parameters { \
		static result(*real) parameters; \
		if (!real) \
			*(void **)&real = dlsym(RTLD_NEXT, #name); \
		be_late(); \
		return real arguments; \
	}

LATE(ssize_t, read, (int fd, void *to, size_t bytes), (fd, to, bytes))
LATE(ssize_t, write, (int fd, const void *from, size_t bytes), (fd, from, bytes))
LATE(ssize_t, recv, (int fd, void *to, size_t bytes, int flags), (fd, to, bytes, flags))
LATE(ssize_t, send, (int fd, const void *from, size_t bytes, int flags), (fd, from, bytes, flags))
LATE(int, accept4, (int fd, struct sockaddr *to, socklen_t *bytes, int flags), (fd, to, bytes, flags))
LATE(int, connect, (int fd, const struct sockaddr *to, socklen_t bytes), (fd, to, bytes))
LATE(int, fsync, (int fd), (fd))
LATE(int, fdatasync, (int fd), (fd))

int poll(struct pollfd *fds, nfds_t count, int timeout) {
	static int (*real)(struct pollfd *, nfds_t, int);
	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "poll");
	be_late();
	int ready = real(fds, count, timeout);
	for (nfds_t at = 0; at < count && ready > 1; at++) {
		if (fds[at].revents && below(3) == 0) {
			fds[at].revents = 0;
			ready--;
		}
	}
	return ready;
}
