#!/bin/bash
# Builds a whole Debian with systemd on a disk that boots through SeaBIOS and
# OVMF. Packages come from where this system's own apt takes them. Takes two to
# three minutes; needs root, since mmdebstrap's result must keep its owners.
# Prints the path of the raw image.
# shellcheck source=tests/vm/images/lib.sh
. "$(dirname "$0")/lib.sh"
. "$IMAGES/boot.sh"

ROOT_MIB=1024
PACKAGES=systemd-sysv,udev,kmod,linux-image-cloud-amd64,initramfs-tools,zstd,e2fsprogs,fio,xfsprogs,btrfs-progs,apparmor,procps
# What the tutorial asks for, but for QEMU: a guest that is emulated in an emulated guest takes more than five minutes to boot.
PACKAGES+=,qemu-utils,curl,age

build() {
    local tree=$1 image=$2 work suite source sources=()
    [ "$(id -u)" = 0 ] || fail "needs root"
    work=$(dirname "$tree")
    suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    for source in /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list; do
        # Only the distribution's own archive: others would bring their keys and pins along.
        if [ -s "$source" ] && grep -q "^[^#]*$suite" "$source"; then sources+=("$source"); fi
    done
    [ "${#sources[@]}" -gt 0 ] || fail "apt has no source for $suite"
    # How this system reaches its archive (a proxy, say) holds for the new one too.
    apt-config dump | grep -E '^Acquire::(http|https)::' >"$work/apt.conf" || true

    mmdebstrap --quiet --variant=minbase --mode=root --aptopt="$work/apt.conf" --include="$PACKAGES" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' "$suite" "$tree" "${sources[@]}"

    install -m 755 "$IMAGES/debian-job" "$tree/usr/local/sbin/sealdisk-job"
    install -m 644 "$IMAGES/debian-job.service" "$tree/etc/systemd/system/sealdisk-job.service"
    ln -s ../sealdisk-job.service "$tree/etc/systemd/system/multi-user.target.wants/sealdisk-job.service"
    # A login prompt would hang up the console under the job.
    ln -s /dev/null "$tree/etc/systemd/system/serial-getty@ttyS0.service"
    echo "LABEL=$GRUB_LABEL / ext4 defaults 0 1" >"$tree/etc/fstab"
    echo debian >"$tree/etc/hostname"
    : >"$tree/etc/machine-id"
    cp -L "$tree"/boot/vmlinuz-* "$tree/boot/vmlinuz"
    cp -L "$tree"/boot/initrd.img-* "$tree/boot/initrd"
    write_grub_config "$tree" "root=LABEL=$GRUB_LABEL rw"

    mke2fs -q -t ext4 -L "$GRUB_LABEL" -d "$tree" "$work/root" "${ROOT_MIB}M" >/dev/null
    assemble_disk "$work" "$work/root" "$image"
}

cached "debian-$(cache_key "$0" "$IMAGES"/{lib.sh,boot.sh,debian-job,debian-job.service} -- mmdebstrap e2fsprogs "${BOOT_PACKAGES[@]}").raw" build
