#!/bin/bash
# Runs QEMU's own tests of vhost-user-blk (tests/qtest/vhost-user-blk-test.c) against `sealdisk attach`.
# Debian has neither the tests nor the accelerator that they need, so both are built from its source
# package of the QEMU that is installed, once (a few minutes), and kept beside the guests' images.
#
# Usage: qtests.sh SEALDISK
# shellcheck source=tests/vm/images/lib.sh
. "$(dirname "$0")/images/lib.sh"

[ $# = 1 ] || fail "usage: qtests.sh SEALDISK"
SEALDISK=$(realpath "$1")
HERE=$(cd "$(dirname "$0")" && pwd)

# source_lists: where apt has the installed QEMU from, as lists of source packages.
source_lists() {
    apt-cache policy qemu-system-x86 | awk '$2 ~ /^(https?|file|copy):/ && $3 ~ /\// {
        split($3, suite, "/"); print "deb-src " $2 " " suite[1] " " suite[2] }' | sort -u
}

build() {
    local work=$1 target=$2 version
    version=$(dpkg-query -W -f '${source:Version}' qemu-system-x86) || fail "QEMU is missing: scripts/setup full"
    source_lists >"$work/sources.list"
    mkdir -p "$work/lists/partial"
    # With lists of their own: the system's sources stay what they are.
    local options=(-q -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=-
        -o Dir::State::lists="$work/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=)
    apt-get "${options[@]}" update >/dev/null || fail "apt has no lists of source packages"
    (cd "$work" && apt-get "${options[@]}" --download-only source "qemu=$version" >/dev/null 2>&1) ||
        fail "the source of QEMU $version can't be downloaded"
    dpkg-source --no-check -x "$work"/qemu_*.dsc "$work/qemu" >/dev/null
    mkdir "$target"
    cd "$target"
    "$work/qemu/configure" --target-list=x86_64-softmmu --without-default-features --enable-tools \
        --enable-vhost-user --enable-vhost-user-blk-server --enable-kvm --disable-tcg --enable-fdt=system \
        --disable-werror --extra-cflags=-O0 >configure.log || fail "QEMU's configure failed: scripts/setup full"
    ninja tests/qtest/qos-test qemu-system-x86_64 >build.log || { tail -n 20 build.log >&2; exit 1; }
    # Only the two programs are kept; firmware is the installed QEMU's.
    mkdir programs
    mv tests/qtest/qos-test qemu-system-x86_64 programs/
    find . -mindepth 1 -maxdepth 1 ! -name programs -exec rm -rf {} +
}

built=$(cached "qtests-$(cache_key "$HERE/qtests.sh" "$IMAGES/lib.sh" -- qemu-system-x86)" build)

scratch=$(mktemp -d)
runtime=$(mktemp -d -p /dev/shm)
trap 'rm -rf "$scratch" "$runtime"' EXIT
# The name's end tells the tests which machine it is.
cat >"$scratch/qemu-system-x86_64" <<QEMU
#!/bin/sh
exec "$built/programs/qemu-system-x86_64" -L /usr/share/seabios -L /usr/share/qemu -nic none "\$@"
QEMU
chmod +x "$scratch/qemu-system-x86_64"
# The platform key is made once.
export SEALDISK SEALDISK_STATE_DIR=$scratch/state SEALDISK_RUNTIME_DIR=$runtime
"$SEALDISK" disk create first --size 1MiB >/dev/null
"$SEALDISK" disk delete first --yes >/dev/null
cd "$scratch"
QTEST_QEMU_BINARY=$scratch/qemu-system-x86_64 QTEST_QEMU_IMG=$(command -v qemu-img) \
    QTEST_QEMU_STORAGE_DAEMON_BINARY=$HERE/qtests-backend \
    "$built/programs/qos-test" --tap -k -r /x86_64/pc/i440FX-pcihost/pci-bus-pc/pci-bus/vhost-user-blk-pci
