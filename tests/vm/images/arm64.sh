#!/bin/bash
# Builds a disk for the firmware of arm64 machines (AAVMF): an EFI system partition with Debian's own
# arm64 kernel and an initramfs of busybox, which the EFI shell starts. What is arm64's comes from where
# this system's apt takes its packages, with lists of their own: nothing is installed, and the
# system's architectures stay what they are.
# Prints the path of the raw image.
# shellcheck source=tests/vm/images/lib.sh
. "$(dirname "$0")/lib.sh"

SIZE_MIB=128

# apt_arm64 ARGUMENT...: apt-get as on an arm64 system, in the folder $LISTS.
apt_arm64() {
    apt-get -q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State::lists="$LISTS" \
        -o Dir::State::status=/dev/null -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= "$@"
}

build() {
    local tree=$1 image=$2 work kernel version applet
    work=$(dirname "$tree")
    LISTS=$work/lists
    mkdir -p "$LISTS/partial" "$work/packages" "$work/files"
    apt_arm64 update >/dev/null || fail "apt has no lists for arm64"
    cd "$work/packages"
    apt_arm64 download busybox-static >/dev/null 2>&1 || fail "there is no busybox-static for arm64"
    kernel=$(apt-cache -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State::lists="$LISTS" \
        -o Dir::State::status=/dev/null -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= \
        depends linux-image-cloud-arm64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
    [ -n "$kernel" ] || fail "apt knows no linux-image-cloud-arm64"
    apt_arm64 download "$kernel" >/dev/null 2>&1 || fail "$kernel can't be downloaded"
    cd - >/dev/null
    for package in "$work"/packages/*.deb; do dpkg-deb -x "$package" "$work/files"; done
    version=$(basename "$work"/files/lib/modules/*)
    depmod -b "$work/files" "$version"

    mkdir -p "$tree"/{bin,sbin,dev,proc,sys,run,tmp,mnt,etc}
    install -m 755 "$work/files/bin/busybox" "$tree/bin/busybox"
    for applet in sh mount modprobe cat dd sha256sum cmp sync poweroff uname head echo blockdev; do
        ln -s busybox "$tree/bin/$applet"
    done
    # Not add_modules: what is built in differs.
    for module in virtio_pci virtio_blk virtio_mmio; do
        modprobe -d "$work/files" -S "$version" --show-depends "$module" | while read -r kind path _; do
            [ "$kind" = builtin ] || install -D -m 644 "$path" "$tree${path#"$work/files"}"
        done
    done
    mkdir -p "$tree/lib/modules/$version"
    cp "$work/files/lib/modules/$version"/modules.{builtin,builtin.modinfo,order} "$tree/lib/modules/$version/"
    depmod -b "$tree" "$version"
    install -m 755 "$IMAGES/init-arm64" "$tree/init"
    pack "$tree" "$work/initrd"

    truncate -s "${SIZE_MIB}M" "$image"
    sgdisk --clear --new=1:2048:-2048 --typecode=1:ef00 "$image" >/dev/null
    truncate -s "$((SIZE_MIB - 3))M" "$work/esp"
    mkfs.vfat -F 32 -s 1 -n ESP "$work/esp" >/dev/null
    printf '%s\r\n' 'echo SEALDISK-EFI-SHELL' \
        'fs0:\vmlinuz.efi initrd=\initrd console=ttyAMA0 quiet loglevel=3 panic=-1 cryptomgr.notests' >"$work/startup.nsh"
    mcopy -i "$work/esp" "$work/files/boot/vmlinuz-$version" ::/vmlinuz.efi
    mcopy -i "$work/esp" "$work/initrd" ::/initrd
    mcopy -i "$work/esp" "$work/startup.nsh" ::/startup.nsh
    dd if="$work/esp" of="$image" bs=1M seek=1 conv=notrunc,sparse status=none
}

cached "arm64-$(cache_key "$0" "$IMAGES"/{lib.sh,init-arm64} -- mtools dosfstools gdisk kmod cpio).raw" build
