#!/bin/bash
# What az does for tests/vm/azure.rs. The environment is that of tests/vaults/management/az-lib.sh.
#
# Usage: tests/vm/azure.sh make|disable|enable
#   make     a vault, a key and a set, under which the disk `golden` moves; a snapshot of it, and of that the disk
#            `bootable`
set -euo pipefail
. "$(dirname "$0")/../vaults/management/az-lib.sh"

enable() { az keyvault key set-attributes --vault-name myvault -n mykey --enabled "$1" -o none; }

case $1 in
    make)
        log_in
        az group create -n rg -l local -o none
        az keyvault create -n myvault -g rg --enable-rbac-authorization false -o none
        key=$(value key.kid keyvault key create --vault-name myvault -n mykey --kty RSA --size 2048)
        az disk-encryption-set create -n myset -g rg --key-url "$key" --source-vault myvault -o none
        principal=$(value identity.principalId disk-encryption-set show -n myset -g rg)
        az keyvault set-policy -n myvault --object-id "$principal" --key-permissions get wrapKey unwrapKey -o none
        set=$(value id disk-encryption-set show -n myset -g rg)
        # What the command line has made is in the group `default`.
        golden=$(value id disk update -n golden -g default --encryption-type EncryptionAtRestWithCustomerKey \
            --disk-encryption-set "$set")
        az snapshot create -n before -g rg --source "$golden" --incremental true -o none
        is "$(value encryption.diskEncryptionSetId disk create -n bootable -g rg --source before)" "$set"
        ;;
    disable) enable false ;;
    enable) enable true ;;
    *) sed -n 's/^# \(Usage: .*\)/\1/p' "$0" >&2; exit 2 ;;
esac
