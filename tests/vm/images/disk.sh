#!/bin/bash
# Builds a small bootable Linux disk: GPT; GRUB for SeaBIOS in a BIOS boot
# partition and for OVMF in an EFI system partition; an ext4 root with a kernel,
# busybox and the tools of tools.sh. Written without loop devices or mounts.
# Prints the path of the raw image.
# shellcheck source=tests/vm/images/lib.sh
. "$(dirname "$0")/lib.sh"
. "$IMAGES/tools.sh"
. "$IMAGES/boot.sh"

ROOT_MIB=192

build() {
    local tree=$1 image=$2 work
    work=$(dirname "$tree")

    mkdir -p "$work/initrd"
    add_base "$work/initrd"
    add_modules "$work/initrd" virtio_pci virtio_blk crc32c_generic
    install -m 755 "$IMAGES/init-disk" "$work/initrd/init"

    add_tools "$tree"
    install -m 755 "$IMAGES/init" "$tree/sbin/init"
    # What is searched for on the host, where it must not be found.
    echo "This sentence is known plaintext of the guest's disk." >"$tree/root/known-plaintext"
    mkdir -p "$tree/boot"
    cp "$(kernel_folder)/vmlinuz" "$tree/boot/vmlinuz"
    pack "$work/initrd" "$tree/boot/initrd"
    write_grub_config "$tree"

    mke2fs -q -t ext4 -L sealdisk-root -d "$tree" "$work/root" "${ROOT_MIB}M" >/dev/null
    assemble_disk "$work" "$work/root" "$image"
}

cached "disk-$(cache_key "$0" "$IMAGES"/{lib.sh,tools.sh,boot.sh,init,init-disk} -- "${TOOL_PACKAGES[@]}" "${BOOT_PACKAGES[@]}").raw" build
