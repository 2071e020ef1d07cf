# shellcheck shell=bash
# Shared by the image builders of this folder; sourced, not run.
#
# Each builder prints the path of what it built on stdout and nothing else
# there. What it built is cached under $SEALDISK_CACHE (default: target/vm of
# this checkout), named by a hash of the builder's own text and of the versions
# of the packages it takes files from, so a changed builder or an upgraded
# package gives a new image and an unchanged one costs nothing.

set -euo pipefail
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

IMAGES=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${SEALDISK_CACHE:-$IMAGES/../../../target/vm}
mkdir -p "$CACHE"
CACHE=$(cd "$CACHE" && pwd)

fail() { echo "$(basename "$0"): $*" >&2; exit 1; }

# kernel_folder: where kernel.sh put the guests' kernel.
kernel_folder() { "$IMAGES/kernel.sh"; }

# cache_key FILE... -- PACKAGE...: hash of the files' text and the packages' versions.
cache_key() {
    local files=() packages
    while [ "$1" != -- ]; do files+=("$1"); shift; done
    shift
    packages=$(dpkg-query -W -f '${Package} ${Version}\n' "$@") || fail "a package is missing: run scripts/setup"
    { cat "${files[@]}"; echo "$packages"; cat "$(kernel_folder)/version"; } | sha256sum | cut -c 1-16
}

# cached NAME BUILD-FUNCTION: prints $CACHE/NAME, first building it when it is
# not there. BUILD-FUNCTION gets an empty work folder and the path to write to;
# the result appears under its name only when complete. Older images of the
# same kind (NAME up to its last "-HASH") are removed then.
cached() {
    local target=$CACHE/$1 build=$2 work
    exec 8>"$CACHE/.lock-${1%-*}" # one a kind: builders call each other
    flock 8
    if [ ! -e "$target" ]; then
        work=$(mktemp -d "$CACHE/.building.XXXXXX")
        # shellcheck disable=SC2064  # the folder's name of now is meant
        trap "rm -rf '$work'" EXIT
        mkdir "$work/tree"
        "$build" "$work/tree" "$work/result" >&2
        rm -f "$CACHE/${1%-*}"-*
        mv "$work/result" "$target"
    fi
    flock -u 8
    echo "$target"
}

# add_program TREE NAME...: copies programs and the shared libraries they load.
add_program() {
    local tree=$1 name file library
    shift
    for name in "$@"; do
        file=$(command -v "$name") || fail "$name is not installed: run scripts/setup"
        install -D -m 755 "$(realpath "$file")" "$tree/usr/sbin/$name"
        while read -r library; do
            [ -e "$tree$library" ] || install -D -m 755 "$(realpath "$library")" "$tree$library"
        done < <(ldd "$file" | grep -o '/[^ ]*')
    done
}

# add_modules TREE MODULE...: copies kernel modules with what they depend on.
add_modules() {
    local tree=$1 folder version module kind path
    folder=$(kernel_folder)
    version=$(cat "$folder/version")
    shift
    for module in "$@"; do
        modprobe -d "$folder" -S "$version" --show-depends "$module" | while read -r kind path _; do
            [ "$kind" = builtin ] || install -D -m 644 "$path" "$tree${path#"$folder"}"
        done
    done
    cp "$folder/lib/modules/$version"/modules.{builtin,builtin.modinfo,order} "$tree/lib/modules/$version/"
    depmod -b "$tree" "$version"
}

# add_base TREE: directories, busybox with all its names.
add_base() {
    local tree=$1 applet
    mkdir -p "$tree"/{bin,sbin,usr/bin,usr/sbin,dev,proc,sys,run,tmp,mnt,root,etc,lib}
    install -m 755 /bin/busybox "$tree/bin/busybox"
    for applet in $(busybox --list); do
        [ "$applet" = busybox ] || ln -s /bin/busybox "$tree/bin/$applet"
    done
    ln -s /bin/busybox "$tree/sbin/modprobe" # where the kernel itself looks for it
    echo 'root:x:0:0:root:/root:/bin/sh' >"$tree/etc/passwd"
    : >"$tree/etc/mtab"
}

# pack TREE FILE: an uncompressed cpio. Under TCG, reading more bytes is
# cheaper than decompressing fewer.
pack() {
    (cd "$1" && find . -print0 | sort -z | cpio --null --create --format=newc --owner=0:0 --quiet) >"$2"
}
