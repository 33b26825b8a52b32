/* Plugin of QEMU's user emulation (API 1 and later): adds the instructions of each block that runs to a number in a file,
   which others can read while the program runs. Argument: the file. Threads may overwrite each other's additions, so a little
   is missing. */

#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef uint64_t id;

extern void qemu_plugin_register_vcpu_tb_trans_cb(id, void (*)(id, void *block));
extern size_t qemu_plugin_tb_n_insns(const void *block);
/* 0 adds a constant. */
extern void qemu_plugin_register_vcpu_tb_exec_inline(void *block, int operation, void *number, uint64_t constant);

int qemu_plugin_version = 1;

static uint64_t *count;

static void translated(id self, void *block)
{
    (void)self;
    qemu_plugin_register_vcpu_tb_exec_inline(block, 0, count, qemu_plugin_tb_n_insns(block));
}

int qemu_plugin_install(id self, const void *info, int argc, char **argv)
{
    (void)info;
    const char *path = argc ? strchr(argv[0], '=') : NULL;
    int fd = path ? open(path + 1, O_RDWR | O_CREAT, 0600) : -1;
    if (fd < 0 || ftruncate(fd, sizeof *count))
        return 1;
    count = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (count == MAP_FAILED)
        return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(self, translated);
    return 0;
}
