/* A machine that lacks what some have not: LD_PRELOAD=odd_disk.so ODD_DISK="folders locks" ankipi ...
 * folders: fsync of a folder fails with EINVAL (vboxsf, CIFS of old kernels). locks: flock fails with ENOLCK (NFS).
 * ipv6: the kernel was built without it. sectors: reading a file whose mode has the sticky bit fails with EIO. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static int lacks(const char *what) {
	const char *all = getenv("ODD_DISK");
	return all && strstr(all, what);
}

static int is_folder(int fd) {
	struct stat st;
	return fstat(fd, &st) == 0 && S_ISDIR(st.st_mode);
}

static int synced(const char *name, int fd) {
	if (lacks("folders") && is_folder(fd)) {
		errno = EINVAL;
		return -1;
	}
	int (*real)(int);
	*(void **)&real = dlsym(RTLD_NEXT, name);
	return real(fd);
}

int fsync(int fd) { return synced("fsync", fd); }
int fdatasync(int fd) { return synced("fdatasync", fd); }

static int has_bad_sector(int fd) {
	struct stat st;
	return lacks("sectors") && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_mode & S_ISVTX;
}

ssize_t pread64(int fd, void *to, size_t bytes, off_t at) {
	if (has_bad_sector(fd)) {
		errno = EIO;
		return -1;
	}
	ssize_t (*real)(int, void *, size_t, off_t);
	*(void **)&real = dlsym(RTLD_NEXT, "pread64");
	return real(fd, to, bytes, at);
}

ssize_t read(int fd, void *to, size_t bytes) {
	if (has_bad_sector(fd)) {
		errno = EIO;
		return -1;
	}
	ssize_t (*real)(int, void *, size_t);
	*(void **)&real = dlsym(RTLD_NEXT, "read");
	return real(fd, to, bytes);
}

int socket(int family, int type, int protocol) {
	if (lacks("ipv6") && family == AF_INET6) {
		errno = EAFNOSUPPORT;
		return -1;
	}
	int (*real)(int, int, int);
	*(void **)&real = dlsym(RTLD_NEXT, "socket");
	return real(family, type, protocol);
}

int flock(int fd, int operation) {
	if (lacks("locks")) {
		errno = ENOLCK;
		return -1;
	}
	int (*real)(int, int);
	*(void **)&real = dlsym(RTLD_NEXT, "flock");
	return real(fd, operation);
}
