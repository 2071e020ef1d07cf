#!/bin/bash
# Builds the guests' initramfs: busybox, virtio and dm-crypt, the tools of the
# usual file systems, cryptsetup. With --fio also fio, whose libraries are most
# of a hundred megabytes and make the boot slower.
# Prints the paths of the kernel that it belongs to and of the cpio.
# shellcheck source=tests/vm/images/lib.sh
. "$(dirname "$0")/lib.sh"
. "$IMAGES/tools.sh"

build() {
    add_tools "$1"
    install -m 755 "$IMAGES/init" "$1/init"
    pack "$1" "$2"
}

build_fio() {
    add_tools "$1"
    add_program "$1" fio
    install -m 755 "$IMAGES/init" "$1/init"
    pack "$1" "$2"
}

echo "$(kernel_folder)/vmlinuz"
case ${1-} in
    "") cached "initramfs-$(cache_key "$0" "$IMAGES"/{lib.sh,tools.sh,init} -- "${TOOL_PACKAGES[@]}").cpio" build ;;
    --fio) cached "initramfs.fio-$(cache_key "$0" "$IMAGES"/{lib.sh,tools.sh,init} -- "${TOOL_PACKAGES[@]}" fio).cpio" build_fio ;;
    *) fail "usage: initramfs.sh [--fio]" ;;
esac
