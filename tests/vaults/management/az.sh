#!/bin/bash
# The documented workflow by Azure's own command line. The environment says where everything is: AZ, BASE, PORT,
# TENANT, CLIENT_ID, SECRET, AZURE_CONFIG_DIR, REQUESTS_CA_BUNDLE.
set -euo pipefail

export AZURE_CORE_COLLECT_TELEMETRY=no AZURE_CORE_ONLY_SHOW_ERRORS=yes AZURE_CORE_NO_COLOR=yes

say() { echo "==> $*"; }
az() { "$AZ" "$@"; }
# The value of a JMESPath expression in what a command answers.
value() { az "${@:2}" --query "$1" -o tsv; }
# A command that has to be refused with a word in what it says.
refused() {
    local said
    if said=$(az "${@:2}" 2>&1); then
        echo "not refused: az ${*:2}: $said" >&2
        exit 1
    fi
    grep -q "$1" <<<"$said" || { echo "az ${*:2} said, without '$1': $said" >&2; exit 1; }
}
is() { [ "$1" = "$2" ] || { echo "'$1' is not '$2'" >&2; exit 1; }; }

say cloud and login
az cloud register -n Sealdisk --endpoint-resource-manager "$BASE"
az cloud set -n Sealdisk
refused "Invalid client secret" login --service-principal -u "$CLIENT_ID" -p wrong --tenant "$TENANT"
is "$(value '[0].tenantId' login --service-principal -u "$CLIENT_ID" -p "$SECRET" --tenant "$TENANT")" "$TENANT"
IDENTITY_ENDPOINT=$BASE/msi/token IDENTITY_HEADER=$SECRET az login --identity -o none
az login --service-principal -u "$CLIENT_ID" -p "$SECRET" --tenant "$TENANT" -o none
subscription=$(value id account show)

say groups
is "$(value name group create -n rg -l local)" rg
is "$(az group exists -n rg)" true
is "$(az group exists -n other)" false
refused ResourceGroupNotFound group show -n other

say a vault with access policies
az keyvault create -n kvpol -g rg --enable-rbac-authorization false --enable-purge-protection true -o none
refused "" keyvault create -n kvpol -g rg
key=$(value key.kid keyvault key create --vault-name kvpol -n key1 --kty RSA --size 2048)
is "$(value 'length(@)' keyvault list -g rg)" 1

say a set
principal=$(value identity.principalId disk-encryption-set create -n des1 -g rg --key-url "$key" --source-vault kvpol)
refused KeyVaultAccessForbidden disk create -n d1 -g rg --size-gb 1 --disk-encryption-set des1
az keyvault set-policy -n kvpol --object-id "$principal" --key-permissions get wrapKey unwrapKey -o none

say disks
des=$(value id disk-encryption-set show -n des1 -g rg)
is "$(value encryption.diskEncryptionSetId disk create -n d1 -g rg --size-gb 1 --disk-encryption-set des1)" "$des"
az disk create -n d2 -g rg --size-gb 1 -o none
is "$(value encryption.type disk update -n d2 -g rg --encryption-type EncryptionAtRestWithCustomerKey \
    --disk-encryption-set des1)" EncryptionAtRestWithCustomerKey
is "$(value encryption.type disk update -n d2 -g rg --encryption-type EncryptionAtRestWithPlatformKey)" \
    EncryptionAtRestWithPlatformKey
is "$(value diskSizeGB disk update -n d2 -g rg --size-gb 2)" 2
refused ResizeDiskError disk update -n d2 -g rg --size-gb 1
refused ResourceNotFound disk show -n d9 -g rg
is "$(value 'length(@)' disk list -g rg)" 2
is "$(value '[0]' disk-encryption-set list-associated-resources -n des1 -g rg)" \
    "/subscriptions/$subscription/resourceGroups/rg/providers/Microsoft.Compute/disks/d1"

say snapshots and images
is "$(value incremental snapshot create -n s1 -g rg --source d1 --incremental true)" true
is "$(value encryption.diskEncryptionSetId disk create -n d3 -g rg --source s1)" "$des"
az image create -n i1 -g rg --source d2 --os-type Linux -o none
is "$(value '[0].name' image list -g rg)" i1
is "$(value 'length(@)' snapshot list)" 1
refused OperationNotAllowed snapshot delete -n s1 -g rg

say access
url=$(value accessSAS disk grant-access -n d2 -g rg --duration-in-seconds 600 --access-level Read)
is "$(value diskState disk show -n d2 -g rg)" ActiveSAS
refused "active shared access signature" disk delete -n d2 -g rg --yes
dir=$(mktemp -d)
trap 'rm -r "$dir"' EXIT
fetch() { curl -sS --fail --cacert "$REQUESTS_CA_BUNDLE" "$@"; }
is "$(fetch -r -512 "$url" | head -c 8)" conectix
is "$(fetch --head "$url" | tr -d '\r' | sed -n 's/^content-length: //p')" $((2 * 1024 * 1024 * 1024 + 512))
is "$(fetch -r 0-1048575 "$url" | tr -d '\0' | wc -c)" 0
az disk revoke-access -n d2 -g rg -o none
is "$(curl -sS -o "$dir/refused" -w '%{http_code}' --cacert "$REQUESTS_CA_BUNDLE" "$url")" 403
grep -q AuthenticationFailed "$dir/refused"
url=$(value accessSAS snapshot grant-access -n s1 -g rg --duration-in-seconds 600)
is "$(fetch -r -512 "$url" | head -c 8)" conectix
az snapshot revoke-access -n s1 -g rg -o none
truncate -s 20M "$dir/raw"
printf 'uploaded' | dd of="$dir/raw" bs=1 seek=1048576 conv=notrunc status=none
qemu-img convert -f raw -O vpc -o subformat=fixed,force_size=on "$dir/raw" "$dir/vhd"
size=$(stat -c %s "$dir/vhd")
az disk create -n up -g rg --for-upload --upload-size-bytes "$size" --disk-encryption-set des1 -o none
is "$(value diskState disk show -n up -g rg)" ReadyToUpload
url=$(value accessSAS disk grant-access -n up -g rg --access-level Write --duration-in-seconds 600)
is "$(value diskState disk show -n up -g rg)" ActiveUpload
for ((at = 0; at < size; at += 4194304)); do
    end=$((at + 4194304 < size ? at + 4194304 : size))
    dd if="$dir/vhd" bs=512 skip=$((at / 512)) count=$(((end - at) / 512)) status=none >"$dir/page"
    fetch -X PUT -H "x-ms-page-write: update" -H "x-ms-range: bytes=$at-$((end - 1))" \
        --data-binary "@$dir/page" "$url&comp=page"
done
az disk revoke-access -n up -g rg -o none
is "$(value diskState disk show -n up -g rg)" Unattached
url=$(value accessSAS disk grant-access -n up -g rg --duration-in-seconds 600)
is "$(fetch -r 1048576-1048583 "$url")" uploaded
fetch -o "$dir/back" "$url"
cmp -n 20971520 "$dir/raw" "$dir/back"
az disk revoke-access -n up -g rg -o none
az disk delete -n up -g rg --yes -o none

say rotation
az disk-encryption-set update -n des1 -g rg --enable-auto-key-rotation true -o none
is "$(value rotationToLatestKeyVersionEnabled disk-encryption-set show -n des1 -g rg)" true
az keyvault key rotate --vault-name kvpol -n key1 -o none

say a vault with roles
az keyvault create -n kvrole -g rg -o none
refused Forbidden keyvault key create --vault-name kvrole -n key2
vault=$(value id keyvault show -n kvrole)
me=$(value '[0].principalId' role assignment list --scope "/subscriptions/$subscription")
az role assignment create --assignee "$me" --role "Key Vault Crypto Officer" --scope "$vault" -o none
key=$(value key.kid keyvault key create --vault-name kvrole -n key2 --kty RSA --size 2048)
principal=$(value identity.principalId disk-encryption-set create -n des2 -g rg --key-url "$key")
refused KeyVaultAccessForbidden disk create -n d4 -g rg --size-gb 1 --disk-encryption-set des2
az role assignment create --assignee-object-id "$principal" --assignee-principal-type ServicePrincipal \
    --role "Key Vault Crypto Service Encryption User" --scope "$vault" -o none
az disk create -n d4 -g rg --size-gb 1 --disk-encryption-set des2 -o none
is "$(value "length([?principalId=='$principal'])" role assignment list --scope "$vault")" 1
az role assignment delete --assignee "$principal" --scope "$vault" \
    --role "Key Vault Crypto Service Encryption User" -o none
refused KeyVaultAccessForbidden disk create -n d5 -g rg --size-gb 1 --disk-encryption-set des2
refused InUseDiskEncryptionSetCannotBeDeleted disk-encryption-set delete -n des2 -g rg

say identities
is "$(value name identity create -n id1 -g rg)" id1

say the end, in the order that works
for disk in d1 d2 d3 d4; do az disk delete -n "$disk" -g rg --yes -o none; done
az snapshot delete -n s1 -g rg -o none
az image delete -n i1 -g rg -o none
az disk-encryption-set delete -n des1 -g rg -o none
az disk-encryption-set delete -n des2 -g rg -o none
az keyvault delete -n kvrole -g rg -o none
is "$(value name keyvault show-deleted -n kvrole)" kvrole
az keyvault recover -n kvrole -o none
az keyvault delete -n kvrole -g rg -o none
az keyvault purge -n kvrole -o none
az keyvault delete -n kvpol -g rg -o none
refused "" keyvault purge -n kvpol
az group delete -n rg --yes -o none
is "$(az group exists -n rg)" false
say done
