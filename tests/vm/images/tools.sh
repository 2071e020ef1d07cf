# shellcheck shell=bash disable=SC2034  # used by who sources it
# What every test guest has besides busybox; sourced after lib.sh.

TOOL_PACKAGES=(busybox-static cryptsetup-bin e2fsprogs xfsprogs btrfs-progs ntfs-3g util-linux libc6)

add_tools() {
    add_base "$1"
    rm -f "$1"/bin/{mke2fs,blkdiscard,fstrim} # the real ones know more
    add_program "$1" mke2fs mkfs.ext4 e2fsck resize2fs blkdiscard fstrim cryptsetup \
        mkfs.xfs xfs_repair mkfs.btrfs btrfs mkfs.ntfs ntfs-3g ntfsfix
    cp /etc/mke2fs.conf "$1/etc/"
    add_modules "$1" virtio_pci virtio_blk virtio_console qemu_fw_cfg button evdev \
        dm_mod dm_crypt xts aesni_intel xfs btrfs crc32c_generic fuse nls_ascii nls_cp437 vfat
}
