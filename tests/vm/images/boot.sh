# shellcheck shell=bash disable=SC2034  # used by who sources it
# Makes a disk image that boots through SeaBIOS and through OVMF out of a root
# file system; sourced after lib.sh.

BOOT_PACKAGES=(grub-pc-bin grub-efi-amd64-bin grub-common gdisk dosfstools mtools)
GRUB_LABEL=sealdisk-root
ESP_MIB=33 # a FAT16 file system of 32 MiB fits

# write_grub_config TREE [KERNEL-ARGUMENTS]: for a TREE with /boot/vmlinuz and /boot/initrd.
write_grub_config() {
    mkdir -p "$1/boot/grub"
    cat >"$1/boot/grub/grub.cfg" <<CONFIG
serial --unit=0 --speed=115200
terminal_output serial
echo "SEALDISK-GRUB \$grub_platform"
linux /boot/vmlinuz ${2-} console=ttyS0 quiet loglevel=3 panic=-1 cryptomgr.notests
initrd /boot/initrd
boot
CONFIG
}

# little_endian_64 NUMBER: its eight bytes.
little_endian_64() {
    local number=$1 shift
    for shift in 0 8 16 24 32 40 48 56; do
        printf '%b' "\\x$(printf %02x $(((number >> shift) & 255)))"
    done
}

# poke FILE OFFSET: overwrites bytes in the middle of FILE with stdin.
poke() { dd of="$1" bs=1 seek="$2" conv=notrunc status=none; }

# assemble_disk WORK ROOT IMAGE: partition table, both GRUBs and the file system
# image ROOT, which has the label sealdisk-root.
assemble_disk() {
    local work=$1 root=$2 image=$3 root_sectors root_start
    # Partitions, in 512-byte sectors. The BIOS boot partition takes the first
    # MiB after the table.
    local core_start=2048 esp_start=4096
    root_start=$((esp_start + ESP_MIB * 2048))
    root_sectors=$(($(stat -c %s "$root") / 512))

    truncate -s "$(((root_start + root_sectors + 2048) * 512))" "$image"
    sgdisk --clear --set-alignment=1 \
        --new=1:$core_start:$((esp_start - 1)) --typecode=1:ef02 \
        --new=2:$esp_start:$((root_start - 1)) --typecode=2:ef00 \
        --new=3:$root_start:$((root_start + root_sectors - 1)) --typecode=3:8300 \
        "$image" >/dev/null

    cat >"$work/grub.cfg" <<CONFIG
search --no-floppy --label $GRUB_LABEL --set=root
set prefix=(\$root)/boot/grub
normal
CONFIG
    local modules=(normal configfile search search_label part_gpt ext2 linux serial terminal echo)

    grub-mkimage -O i386-pc -o "$work/core.img" -c "$work/grub.cfg" -p /boot/grub "${modules[@]}" biosdisk
    [ "$(stat -c %s "$work/core.img")" -le $(((esp_start - core_start) * 512)) ] || fail "GRUB's core image is too large"
    dd if="$work/core.img" of="$image" bs=512 seek=$core_start conv=notrunc status=none
    # The first 440 bytes are code; the rest of the sector is the partition table's.
    dd if=/usr/lib/grub/i386-pc/boot.img of="$image" bs=1 count=440 conv=notrunc status=none
    # What grub-setup would patch: boot.img's address of core.img, its check for
    # BIOSes that pass a wrong drive number, and core.img's list of its own blocks.
    little_endian_64 $core_start | poke "$image" $((0x5c))
    printf '\x90\x90' | poke "$image" $((0x66))
    little_endian_64 $((core_start + 1)) | poke "$image" $((core_start * 512 + 0x1f4))

    grub-mkimage -O x86_64-efi -o "$work/bootx64.efi" -c "$work/grub.cfg" -p /boot/grub "${modules[@]}"
    truncate -s 32M "$work/esp"
    mkfs.vfat -F 16 -n ESP "$work/esp" >/dev/null
    mmd -i "$work/esp" ::/EFI ::/EFI/BOOT
    mcopy -i "$work/esp" "$work/bootx64.efi" ::/EFI/BOOT/BOOTX64.EFI
    dd if="$work/esp" of="$image" bs=1M seek=$((esp_start / 2048)) conv=notrunc,sparse status=none
    dd if="$root" of="$image" bs=1M seek=$((root_start / 2048)) conv=notrunc,sparse status=none
}
