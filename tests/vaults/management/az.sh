#!/bin/bash
# The documented workflow by Azure's own command line, with access policies and with roles, and the refusals.
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

say a key that is disabled, and what is in use
az keyvault key set-attributes --vault-name kvpol -n key1 --enabled false -o none
refused KeyVaultAccessForbidden az disk create -n d4 -g rg --size-gb 1 --disk-encryption-set des1
refused KeyVaultAccessForbidden az disk create -n d4 -g rg --source s1
az keyvault key set-attributes --vault-name kvpol -n key1 --enabled true -o none
refused VaultInUse az keyvault delete -n kvpol -g rg

say rotation
az disk-encryption-set update -n des1 -g rg --enable-auto-key-rotation true -o none
is "$(value rotationToLatestKeyVersionEnabled disk-encryption-set show -n des1 -g rg)" true
az keyvault key rotate --vault-name kvpol -n key1 -o none

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
