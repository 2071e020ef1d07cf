#!/bin/bash
# Types what a page of the book has its reader type: its blocks of `sh` from the login on, in one shell.
#
# Usage: tests/vaults/management/book.sh PAGE
# What it is told in a comment before a block of the page:
#   <!-- az: never -->          nobody but the reader
#   <!-- az: refused CODE -->   it has to be refused with that code
set -euo pipefail

page=$(realpath "$1")
. "$(dirname "$0")/az-lib.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
printf '%s' "$SECRET" >admin.secret
ca=$REQUESTS_CA_BUNDLE

# The page's installation is this one.
here() {
    local text=$1
    text=${text//https:\/\/localhost:8443/$BASE}
    text=${text//\/var\/lib\/sealdisk\/tls\/ca.pem/$ca}
    text=${text//CLIENT_ID/$CLIENT_ID}
    text=${text//--tenant TENANT/--tenant $TENANT}
    printf '%s' "$text"
}

ran=0
# type BLOCK MARK
type_block() {
    local block
    block=$(here "$1")
    say "$1"
    case $2 in
        never) ;;
        refused*) refused "${2#refused }" eval "$block" ;;
        *) eval "$block" ;;
    esac
    ran=$((ran + 1))
}

in_part=no in_block=no mark='' block=''
while IFS= read -r line; do
    case $in_block/$line in
        no/'## Point az at it'*) in_part=yes ;;
        no/'## Download and upload'*) in_part=no ;;
        no/'<!-- az: '*) mark=${line#<!-- az: } mark=${mark% -->} ;;
        no/'```sh') in_block=yes block='' ;;
        yes/'```')
            in_block=no
            [ "$in_part" = no ] || type_block "$block" "$mark" </dev/null
            mark=''
            ;;
        yes/*) block+=$line$'\n' ;;
    esac
done <"$page"
[ "$ran" -gt 10 ] || { echo "only $ran blocks in $page" >&2; exit 1; }
