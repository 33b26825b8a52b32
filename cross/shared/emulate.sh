# shellcheck shell=bash
# Runs programs for other processors on this machine, under qemu-user; sourced.

# Installs Debian's packages of those commands that are missing: need COMMAND PACKAGE...
need() {
    if command -v "$1" >/dev/null; then return; fi
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then die "$1 is missing; on Debian: apt-get install ${*:2}"; fi
    say "installing ${*:2}"
    apt-get install --yes -qq --no-install-recommends "${@:2}" >&2 || {
        apt-get update -qq && apt-get install --yes -qq --no-install-recommends "${@:2}" >&2
    }
}

# Lets the kernel start programs of processor $1 (arm, aarch64, mips, mipsel, riscv64) by their emulator, in a chroot too. It stays so
# until the next boot, as if the machine had started with qemu-user-static installed.
register_emulator() {
    local binfmt=/proc/sys/fs/binfmt_misc
    need "qemu-$1-static" qemu-user-static
    [[ -e $binfmt/register ]] || mount -t binfmt_misc binfmt_misc $binfmt
    [[ -e $binfmt/qemu-$1 ]] || cat "/usr/lib/binfmt.d/qemu-$1.conf" >$binfmt/register
}
