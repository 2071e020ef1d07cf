#!/bin/bash
# Fetches the guests' kernel: the system's own package, unpacked into the cache
# and not installed, so that the host gets no further boot entry.
# Prints the folder, which has vmlinuz, version and lib/modules/VERSION.
# shellcheck source=tests/vm/images/lib.sh
. "$(dirname "$0")/lib.sh"

build() {
    local tree=$1 folder=$2 package version
    package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
    [ -n "$package" ] || fail "apt knows no linux-image-cloud-amd64: apt-get update"
    # Downloaded to a folder that apt's own user can't write to: it says so, harmlessly.
    (cd "$tree" && apt-get download -q "$package" 2>&1) || fail "$package can't be downloaded: apt-get update, then again"
    mkdir "$folder"
    dpkg-deb -x "$tree"/linux-image-*.deb "$tree/files"
    version=${package#linux-image-}
    version=${version%-unsigned}
    mv "$tree/files/lib" "$folder/lib"
    mv "$tree/files/boot/vmlinuz-$version" "$folder/vmlinuz"
    echo "$version" >"$folder/version"
    depmod -b "$folder" "$version"
}

# The kernel stays the same one until the cache is emptied: tests don't change under a user's hands.
cached "kernel-$(sha256sum "$0" | cut -c 1-16)" build
