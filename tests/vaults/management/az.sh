#!/bin/bash
# The documented workflow by Azure's own command line, with access policies and with roles, and the refusals. SEALDISK is
# the program on that installation.
set -euo pipefail
. "$(dirname "$0")/az-lib.sh"

say cloud and login
az cloud register -n Sealdisk --endpoint-resource-manager "$BASE"
az cloud set -n Sealdisk
refused "Invalid client secret" az login --service-principal -u "$CLIENT_ID" -p wrong --tenant "$TENANT"
is "$(value '[0].tenantId' login --service-principal -u "$CLIENT_ID" -p "$SECRET" --tenant "$TENANT")" "$TENANT"
IDENTITY_ENDPOINT=$BASE/msi/token IDENTITY_HEADER=$SECRET az login --identity -o none
az login --service-principal -u "$CLIENT_ID" -p "$SECRET" --tenant "$TENANT" -o none
subscription=$(value id account show)

say groups
is "$(value name group create -n rg -l local)" rg
is "$(az group exists -n rg)" true
is "$(az group exists -n other)" false
refused ResourceGroupNotFound az group show -n other

say a vault with access policies
az keyvault create -n kvpol -g rg --enable-rbac-authorization false --enable-purge-protection true -o none
refused "" az keyvault create -n kvpol -g rg
key=$(value key.kid keyvault key create --vault-name kvpol -n key1 --kty RSA --size 2048)
is "$(value 'length(@)' keyvault list -g rg)" 1
refused KeyNotFound az keyvault key show --vault-name kvpol -n own
openssl genrsa -out "$AZURE_CONFIG_DIR/own.pem" 3072 2>/dev/null
own=$(value key.kid keyvault key import --vault-name kvpol -n own --pem-file "$AZURE_CONFIG_DIR/own.pem")
case $own in */keys/own/*) ;; *) echo "no key: $own" >&2; exit 1 ;; esac

say a set
principal=$(value identity.principalId disk-encryption-set create -n des1 -g rg --key-url "$key" --source-vault kvpol)
refused KeyVaultAccessForbidden az disk create -n d1 -g rg --size-gb 1 --disk-encryption-set des1
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
refused ResizeDiskError az disk update -n d2 -g rg --size-gb 1
refused ResourceNotFound az disk show -n d9 -g rg
is "$(value 'length(@)' disk list -g rg)" 2
is "$(value '[0]' disk-encryption-set list-associated-resources -n des1 -g rg)" \
    "/subscriptions/$subscription/resourceGroups/rg/providers/Microsoft.Compute/disks/d1"

say snapshots and images
is "$(value incremental snapshot create -n s1 -g rg --source d1 --incremental true)" true
is "$(value encryption.diskEncryptionSetId disk create -n d3 -g rg --source s1)" "$des"
az image create -n i1 -g rg --source d2 --os-type Linux -o none
is "$(value '[0].name' image list -g rg)" i1
is "$(value 'length(@)' snapshot list)" 1
refused OperationNotAllowed az snapshot delete -n s1 -g rg
is "$(value '[creationData.createOption, completionPercent]' snapshot create -n deep -g rg --source s1 --copy-start true | xargs)" \
    "CopyStart 100.0"
az snapshot delete -n deep -g rg -o none

say a key that is disabled, and what is in use
az keyvault key set-attributes --vault-name kvpol -n key1 --enabled false -o none
refused KeyVaultAccessForbidden az disk create -n d4 -g rg --size-gb 1 --disk-encryption-set des1
refused KeyVaultAccessForbidden az disk create -n d4 -g rg --source s1
az keyvault key set-attributes --vault-name kvpol -n key1 --enabled true -o none
refused VaultInUse az keyvault delete -n kvpol -g rg

say access
url=$(value accessSAS disk grant-access -n d2 -g rg --duration-in-seconds 600 --access-level Read)
is "$(value diskState disk show -n d2 -g rg)" ActiveSAS
refused "active shared access signature" az disk delete -n d2 -g rg --yes
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

say double encryption
twice=EncryptionAtRestWithPlatformAndCustomerKeys
both=$(value identity.principalId disk-encryption-set create -n twice -g rg --key-url "$key" --encryption-type $twice)
az keyvault set-policy -n kvpol --object-id "$both" --key-permissions get wrapKey unwrapKey -o none
# az itself takes no other type than the customer's key with a set, unless it is told what to put.
is "$(value encryption.type disk update -n d2 -g rg --set encryption.type=$twice \
    encryption.diskEncryptionSetId="$(value id disk-encryption-set show -n twice -g rg)")" $twice
is "$(value encryption.type disk show -n d2 -g rg)" $twice
is "$(value encryption.type disk update -n d2 -g rg --encryption-type EncryptionAtRestWithPlatformKey)" \
    EncryptionAtRestWithPlatformKey
az disk-encryption-set delete -n twice -g rg -o none

say a set with the identity of a user
az identity create -n diskid -g rg -o none
user=$(value id identity show -n diskid -g rg)
is "$(value identity.type disk-encryption-set create -n des3 -g rg --key-url "$key" --mi-user-assigned "$user")" UserAssigned
refused KeyVaultAccessForbidden az disk create -n d6 -g rg --size-gb 1 --disk-encryption-set des3
az keyvault set-policy -n kvpol --object-id "$(value principalId identity show -n diskid -g rg)" \
    --key-permissions get wrapKey unwrapKey -o none
az disk create -n d6 -g rg --size-gb 1 --disk-encryption-set des3 -o none
refused IdentityInUse az identity delete -n diskid -g rg
az disk delete -n d6 -g rg --yes -o none
az disk-encryption-set delete -n des3 -g rg -o none
az identity delete -n diskid -g rg

say network rules
az keyvault update -n kvpol -g rg --default-action Deny -o none
refused Forbidden az keyvault key show --vault-name kvpol -n key1
az keyvault network-rule add -n kvpol -g rg --ip-address 127.0.0.0/8 -o none
is "$(value 'ipRules[0].value' keyvault network-rule list -n kvpol -g rg)" 127.0.0.0/8
az keyvault key show --vault-name kvpol -n key1 -o none
az keyvault network-rule remove -n kvpol -g rg --ip-address 127.0.0.0/8 -o none
refused Forbidden az keyvault key show --vault-name kvpol -n key1
az disk create -n d7 -g rg --size-gb 1 --disk-encryption-set des1 -o none
az disk delete -n d7 -g rg --yes -o none
az keyvault update -n kvpol -g rg --public-network-access Disabled --default-action Allow -o none
refused Forbidden az keyvault key show --vault-name kvpol -n key1
az keyvault update -n kvpol -g rg --public-network-access Enabled -o none

say rotation
az disk-encryption-set update -n des1 -g rg --enable-auto-key-rotation true -o none
is "$(value rotationToLatestKeyVersionEnabled disk-encryption-set show -n des1 -g rg)" true
before=$(value activeKey.keyUrl disk-encryption-set show -n des1 -g rg)
newer=$(value key.kid keyvault key rotate --vault-name kvpol -n key1)
is "$([ "$newer" = "$key" ] || echo another)" another
"$SEALDISK" disk-encryption-set rotate >/dev/null
wraps_d1() { "$SEALDISK" disk show d1 -o tsv --query encryption.keyUrl; }
is "$(wraps_d1 | sed 's|.*/keys/||')" "${newer##*/keys/}"
az disk-encryption-set update -n des1 -g rg --key-url "$own" --source-vault kvpol -o none
is "$(wraps_d1 | sed 's|.*/keys/||')" "${own##*/keys/}"
is "$(value activeKey.keyUrl disk-encryption-set show -n des1 -g rg)" "$own"
az disk-encryption-set update -n des1 -g rg --key-url "$before" --source-vault kvpol -o none

say deployments
template=$(dirname "$0")/set-template.json
vault=$(value id keyvault show -n kvpol)
deploy() {
    az deployment group "$1" -g rg -n sets --template-file "$template" --parameters diskEncryptionSetName="$2" \
        keyVaultId="$vault" keyVaultKeyUrl="$key" region=local "${@:3}"
}
is "$(deploy validate des3 --query properties.provisioningState -o tsv)" Succeeded
refused ResourceNotFound az disk-encryption-set show -n des3 -g rg
would=$(deploy what-if des3 --no-pretty-print --query "changes[?changeType=='Create'].after.name" -o tsv)
is "$would" des3
grep -q '1 to create' <<<"$(deploy what-if des3)" || { echo "what-if says nothing of des3" >&2; exit 1; }
refused ResourceNotFound az disk-encryption-set show -n des3 -g rg
made=$(deploy create des3 --query properties.outputs.principalId.value -o tsv)
is "$(value identity.principalId disk-encryption-set show -n des3 -g rg)" "$made"
is "$(value properties.provisioningState deployment group show -n sets -g rg)" Succeeded
is "$(value '[].name' deployment group list -g rg)" sets
is "$(value '[0].properties.targetResource.resourceName' deployment operation group list -n sets -g rg)" des3
if said=$(deploy create 'no/name' 2>&1); then echo "not refused: $said" >&2; exit 1; fi
grep -q InvalidTemplate <<<"$said" || { echo "said, without InvalidTemplate: $said" >&2; exit 1; }
failing='{"resources": [{"type": "Microsoft.Compute/disks", "apiVersion": "2025-01-02", "name": "d9", "location":
    "nowhere", "properties": {"creationData": {"createOption": "Empty"}, "diskSizeGB": 1}}]}'
echo "$failing" >"$AZURE_CONFIG_DIR/failing.json"
refused LocationNotAvailable az deployment group create -n bad -g rg --template-file "$AZURE_CONFIG_DIR/failing.json"
is "$(value properties.provisioningState deployment group show -n bad -g rg)" Failed
az deployment group delete -n sets -g rg -o none
az deployment group delete -n bad -g rg -o none
is "$(value 'length(@)' deployment group list -g rg)" 0
az disk-encryption-set delete -n des3 -g rg -o none

say locks
disks=Microsoft.Compute/disks
is "$(value level lock create -n keep --lock-type CanNotDelete -g rg --resource d3 --resource-type $disks)" CanNotDelete
refused ScopeLocked az disk delete -n d3 -g rg --yes
refused ScopeLocked az group delete -n rg --yes
if said=$("$SEALDISK" disk delete d3 --yes 2>&1); then echo "not refused: $said" >&2; exit 1; fi
is "$(value notes lock update -n keep -g rg --resource d3 --resource-type $disks --notes why --lock-type ReadOnly)" why
refused ScopeLocked az disk update -n d3 -g rg --size-gb 3
is "$(value name lock show -n keep -g rg --resource d3 --resource-type $disks)" keep
az lock delete -n keep -g rg --resource d3 --resource-type $disks
az group lock create -n frozen -g rg --lock-type ReadOnly -o none
refused ScopeLocked az disk create -n d9 -g rg --size-gb 1
refused ScopeLocked az disk grant-access -n d3 -g rg --duration-in-seconds 60
is "$(value 'length(@)' disk list -g rg)" 3
az group lock delete -n frozen -g rg
az account lock create -n all --lock-type CanNotDelete -o none
refused ScopeLocked az image delete -n i1 -g rg
is "$(value '[].name' lock list)" all
"$SEALDISK" lock delete all --yes
is "$(value 'length(@)' account lock list)" 0

say a vault with roles
az keyvault create -n kvrole -g rg -o none
refused Forbidden az keyvault key create --vault-name kvrole -n key2
vault=$(value id keyvault show -n kvrole)
me=$(value '[0].principalId' role assignment list --scope "/subscriptions/$subscription")
az role assignment create --assignee "$me" --role "Key Vault Crypto Officer" --scope "$vault" -o none
key=$(value key.kid keyvault key create --vault-name kvrole -n key2 --kty RSA --size 2048)
principal=$(value identity.principalId disk-encryption-set create -n des2 -g rg --key-url "$key")
refused KeyVaultAccessForbidden az disk create -n d4 -g rg --size-gb 1 --disk-encryption-set des2
az role assignment create --assignee-object-id "$principal" --assignee-principal-type ServicePrincipal \
    --role "Key Vault Crypto Service Encryption User" --scope "$vault" -o none
az disk create -n d4 -g rg --size-gb 1 --disk-encryption-set des2 -o none
is "$(value "length([?principalId=='$principal'])" role assignment list --scope "$vault")" 1
az role assignment delete --assignee "$principal" --scope "$vault" \
    --role "Key Vault Crypto Service Encryption User" -o none
refused KeyVaultAccessForbidden az disk create -n d5 -g rg --size-gb 1 --disk-encryption-set des2
refused InUseDiskEncryptionSetCannotBeDeleted az disk-encryption-set delete -n des2 -g rg

say identities
is "$(value name identity create -n id1 -g rg)" id1

say applications
read -r -d '' app first < <(value '[appId, password]' ad sp create-for-rbac -n pipeline --role Reader \
    --scopes "/subscriptions/$subscription/resourceGroups/rg") || true
(
    export AZURE_CONFIG_DIR=$AZURE_CONFIG_DIR/pipeline
    az cloud register -n Sealdisk --endpoint-resource-manager "$BASE"
    az cloud set -n Sealdisk
    az login --service-principal -u "$app" -p "$first" --tenant "$TENANT" -o none
    is "$(value name group show -n rg)" rg
    refused "does not have authorization" az ad sp create-for-rbac -n other
    refused "does not have authorization" az ad sp credential reset --id "$app"
)
is "$(value appId ad sp create-for-rbac -n pipeline)" "$app"
second=$(value password ad sp credential reset --id "$app")
is "$([ "$second" = "$first" ] || echo another)" another
refused "has a password" az ad sp credential reset --id "$app" --append
is "$(value displayName ad sp show --id "$app")" pipeline
is "$(value '[].appId' ad sp list --display-name pipe)" "$app"
is "$(value '[].appId' ad app list --display-name pipeline)" "$app"
is "$(value 'length(@)' ad sp credential list --id "$app")" 1
refused "does not offer" az ad app update --id "$app" --display-name other
refused "no application" az ad sp credential reset --id "$CLIENT_ID" --append
az ad sp delete --id "$app"
is "$(value 'length(@)' ad app list --display-name pipeline)" 0
app=$(value appId ad app create --display-name other)
az ad app delete --id "$app"
is "$(value 'length(@)' ad sp list --display-name other)" 0

say users
"$SEALDISK" identity create alice --secret-file "$AZURE_CONFIG_DIR/alice.secret" >/dev/null
"$SEALDISK" role assignment create --assignee alice --role Reader >/dev/null
password=$("$SEALDISK" identity set-password alice -o tsv --query password)
(
    export AZURE_CONFIG_DIR=$AZURE_CONFIG_DIR/alice
    az cloud register -n Sealdisk --endpoint-resource-manager "$BASE"
    az cloud set -n Sealdisk
    refused AADSTS50126 az login -u alice -p wrong
    is "$(value '[0].tenantId' login -u alice -p "$password")" "$TENANT"
    is "$(value '[0].name' group list)" default
    refused AuthorizationFailed az group create -n other -l local
    az logout
    AZURE_CORE_ONLY_SHOW_ERRORS=no az login --use-device-code -o none 2>"$AZURE_CONFIG_DIR/said" &
    for _ in $(seq 300); do
        code=$(grep -o '[B-Z]\{4\}-[B-Z]\{4\}' "$AZURE_CONFIG_DIR/said" || true)
        [ -z "$code" ] || break
        sleep 0.2
    done
    "$SEALDISK" identity approve "$code" --identity-name alice --yes
    wait $!
    is "$(value '[0].name' group list)" default
)

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
refused "" az keyvault purge -n kvpol
az group delete -n rg --yes -o none
is "$(az group exists -n rg)" false
say done
