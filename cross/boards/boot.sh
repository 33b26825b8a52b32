#!/usr/bin/env bash
# Boots emulated boards with ankipi on them and lets real Anki clients sync with it: cross/boards/boot.sh [options] BOARD...
#
# A board is a whole machine: Debian's kernel and busybox, a read-only root with the files of cross/packages/install.sh and the
# init script of cross/init/sysvinit, and a data partition. Two clients sync collection and media through it, then its
# power is cut, and after another boot everything must be there. Memory is read in the board itself. From nothing this
# takes five minutes a board, later two; kernels (35 MB each) and tools stay in CROSS_TOOLS, see cross/build.sh.
set -euo pipefail
cross=$(dirname "$0")/..
# shellcheck source=cross/build.sh
source "$cross/build.sh"
cd "$repo"

usage() {
    sed -n '2,7s/^# \?//p' cross/boards/boot.sh
    cat <<'END'

Boards:
  arm64      a 64-bit board with a Cortex-A53: qemu's "virt", 80 MB
  armv7      a board with a Cortex-A7, such as the Pi 2: qemu's "virt", 64 MB
  pi-zero    Raspberry Pi Zero: qemu's "raspi0", ARMv6, 512 MB

  --mem N         let the kernel have N MB, at most 512
  --least         find the least memory that kernel and busybox boot with, and sync with 8 MB more
  --bench[=ARGS]  run ankipi-bench with 512 MB and these arguments in place of the clients, for instance
                  --bench="--notes 1000 --job upload"; everything takes half an hour
END
}

# Sets the variables of board $1. The modules are in the order in which they need each other.
describe() {
    local filesystem="crc16 mbcache crc32c_generic jbd2 ext4"
    local virtio=(-m 512 -device "virtio-blk-device,drive=disk")
    ram_start=0x40000000 disk=vda net=eth0 nic=virtio-net-device dtb=
    modules="virtio_mmio virtio_blk failover net_failover virtio_net $filesystem"
    append="console=ttyAMA0 cma=0"
    case $1 in
        arm64)
            target=aarch64-unknown-linux-musl arch=arm64 kernel=linux-image-arm64 memory=80
            qemu=(qemu-system-aarch64 -M virt -cpu cortex-a53 "${virtio[@]}")
            append+=" swiotlb=noforce"
            ;;
        armv7)
            target=armv7-unknown-linux-musleabihf arch=armhf kernel=linux-image-armmp memory=64
            qemu=(qemu-system-arm -M "virt,highmem=off" -cpu cortex-a7 "${virtio[@]}")
            ;;
        pi-zero)
            target=arm-unknown-linux-musleabihf arch=armel kernel=linux-image-rpi memory=512
            ram_start=0 disk=mmcblk0 net=usb0 nic=usb-net dtb=bcm2835-rpi-zero.dtb
            modules="mii usbnet cdc_ether cdc_subset rndis_host $filesystem"
            qemu=(qemu-system-arm -M raspi0 -m 512 -dtb "$tools/boot-$1/$dtb" -device "sd-card,drive=disk")
            # The kernel stops at the power management that the emulator does not have.
            append+=" initcall_blacklist=bcm2835_pm_driver_init"
            ;;
        *) die "$1 is not a board; --help lists them" ;;
    esac
}

need_programs() {
    local line="apt-get install -y --no-install-recommends qemu-system-arm ipxe-qemu cpio e2fsprogs"
    PATH+=:/usr/sbin:/sbin
    if type qemu-system-arm cpio mke2fs >/dev/null 2>&1; then return; fi
    [[ $(id -u) == 0 ]] || die "the emulator or what makes its disk is missing; run as root: $line"
    say "$line"
    $line >/dev/null || die "that failed; apt-get update may help"
}

# Kernel, modules and busybox of the board's architecture, into the folder $1. apt works on folders of its own: the
# system's packages and lists stay as they are.
# shellcheck disable=SC2317  # `provide` calls it
fetch_board() {
    local new=$1 apt=$1/apt image module
    say "fetching $kernel and busybox-static for $arch (50 MB of package lists, 35 MB)"
    mkdir -p "$apt"/state/lists/partial "$apt"/cache/archives/partial
    touch "$apt/status"
    cat >"$apt/apt.conf" <<END
Dir::State "$apt/state";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
APT::Architecture "$arch";
APT::Architectures { "$arch"; };
Acquire::Languages "none";
END
    (
        export APT_CONFIG=$apt/apt.conf
        # One index may fail, as those of security updates for some architectures do at times: the others are enough.
        apt-get update -qq 2>"$apt/errors" || true
        image=$(depends_of "$kernel" | sed -n 's/^\(linux-image[^:]*\).*/\1/p' | head -n1)
        [[ $image ]] || die "no $kernel for $arch: $(cat "$apt/errors")"
        cd "$apt"
        apt-get download -qq "$image" busybox-static 2>&1 | grep -v unsandboxed >&2 || true
    )
    for deb in "$apt"/*.deb; do dpkg-deb -x "$deb" "$apt/root"; done
    mkdir "$new/modules"
    cp "$apt/root/bin/busybox" "$new"
    cp "$apt"/root/boot/vmlinuz-* "$new/vmlinuz"
    [[ ! $dtb ]] || cp "$apt"/root/usr/lib/linux-image-*/"$dtb" "$new"
    for module in $modules; do
        find "$apt/root/lib/modules" -name "${module//_/[-_]}.ko" -exec cp {} "$new/modules/$module.ko" \;
        [[ -e $new/modules/$module.ko ]] || say "$kernel has no module $module: taken to be part of it"
    done
    rm -r "$apt"
}

busybox_links() {
    local name
    mkdir -p "$1"
    cp "$parts/busybox" "$1/busybox"
    for name in ash cat chmod chown cp cut date dmesg echo free grep head id ifconfig init insmod kill ln ls mkdir mount mv nice ps \
        rm sed sh sleep start-stop-daemon stty su switch_root sync tail touch tr true umount uname usleep wget; do
        ln -s busybox "$1/$name"
    done
}

# The initial RAM disk: finds the disk, continues there, and is freed.
make_initramfs() {
    local root=$work/initramfs module
    busybox_links "$root/bin"
    mkdir -p "$root"/{dev,proc,root,modules}
    cp cross/boards/init "$root/init"
    for module in $modules; do
        if [[ -e $parts/modules/$module.ko ]]; then
            cp "$parts/modules/$module.ko" "$root/modules"
            echo "insmod /modules/$module.ko" >>"$root/modules/load"
        fi
    done
    (cd "$root" && find . | cpio --quiet -o -H newc -R 0:0 | gzip -9) >"$work/initramfs.gz"
}

# The system on the read-only partition: whoever unpacks the archive on a board gets the same files.
make_root() {
    local root=$work/root
    busybox_links "$root/bin"
    mkdir -p "$root"/{dev,etc/init.d,proc,run,sbin,sys,tmp,var/lib/ankipi,var/log}
    ln -s ../bin/init "$root/sbin/init"
    ln -s ../run "$root/var/run"
    cp cross/boards/inittab "$root/etc/inittab"
    cp cross/boards/rcS cross/boards/commands "$root/etc/init.d"
    printf 'root:x:0:0::/:/bin/sh\nankipi:x:100:100::/var/lib/ankipi:/bin/false\n' >"$root/etc/passwd"
    printf 'root:x:0:\nankipi:x:100:\n' >"$root/etc/group"
    mkdir "$work/archive"
    cp -r "$out/$target/ankipi" cross/packages/install.sh cross/init cross/man/ankipi.1 cross/completion/ankipi.bash "$work/archive"
    DESTDIR=$root "$work/archive/install.sh" >/dev/null
    if [[ $bench ]]; then cp "$out/$target/ankipi-bench" "$root/usr/bin"; fi
}

# A number as four bytes, the smallest first.
le32() { printf '%b' "$(printf '\\x%02x' $(($1 & 255)) $(($1 >> 8 & 255)) $(($1 >> 16 & 255)) $(($1 >> 24 & 255)))"; }

# An entry of the partition table: $1 MB long from MB $2.
partition() {
    printf '\0\xfe\xff\xff\x83\xfe\xff\xff'
    le32 $(($2 * 2048))
    le32 $(($1 * 2048))
}

# Two partitions, system and data, as on an SD card; whose size must be a power of two.
make_disk() {
    local image=$work/disk root_mb=31
    truncate -s "${disk_mb}M" "$image"
    {
        head -c 446 /dev/zero
        partition "$root_mb" 1
        partition $((disk_mb - root_mb - 1)) $((root_mb + 1))
        head -c 32 /dev/zero
        printf '\x55\xaa'
    } | dd of="$image" conv=notrunc status=none
    mke2fs -q -t ext4 -O ^has_journal -E "offset=$((1 << 20)),root_owner=0:0" -d "$work/root" "$image" "${root_mb}M"
    mke2fs -q -t ext4 -E "offset=$(((root_mb + 1) << 20))" "$image" "$((disk_mb - root_mb - 1))M"
}

boot() {
    local parts=$tools/boot-$1 work=$out/boot-$1
    describe "$1"
    provide "boot-$1" fetch_board
    (prepare_tools; build "$target" >&2)
    rm -rf "$work"
    mkdir -p "$work"
    make_initramfs
    make_root
    make_disk
    tests/.venv/bin/python cross/boards/board.py --name "$1" --memory "${mem:-$memory}" --ram-start "$ram_start" \
        --initramfs "$work/initramfs.gz" --append "$append disk=$disk net=$net" --nic "$nic" --tally "$tally" "${pass_on[@]}" -- \
        "${qemu[@]}" -kernel "$parts/vmlinuz" -drive "id=disk,if=none,format=raw,file=$work/disk" || true # it has told
    rm -f "$work/disk"
}

boards=()
bench=
mem=
disk_mb=256
pass_on=()
while [[ $# -gt 0 ]]; do
    case $1 in
        -h | --help) usage; exit ;;
        --mem) mem=${2:?}; shift ;;
        --least) pass_on+=(--least) ;;
        --bench) bench=1 pass_on+=(--bench=) ;;
        --bench=*) bench=1 pass_on+=("$1") ;;
        -*) die "$1 is not an option; --help tells more" ;;
        *) describe "$1"; boards+=("$1") ;;
    esac
    shift
done
[[ ${#boards[@]} -gt 0 ]] || { usage; exit 2; }
if [[ $bench ]]; then disk_mb=1024 mem=${mem:-512}; fi
need_programs
tests/real/install
tally=$(mktemp)
trap 'rm "$tally"' EXIT
for board in "${boards[@]}"; do boot "$board"; done
awk -v boards="${#boards[@]}" '{ passed += $1; failed += $2 }
    END { failed += boards - NR; print passed + 0 " passed, " failed " failed"; exit failed > 0 }' "$tally"
