"""The documented workflow by Azure's management SDKs, with access policies and with roles.

It is started with the addresses of a real `sealdisk serve` in its environment and ends with status 0 if everything
is as expected. `sitecustomize` beside it has names below localhost mean this host.
"""

import os
import time
import uuid

from azure.core.exceptions import HttpResponseError
from azure.identity import ClientSecretCredential, ManagedIdentityCredential
from azure.keyvault.keys import KeyClient
from azure.mgmt.authorization import AuthorizationManagementClient
from azure.mgmt.authorization.models import RoleAssignmentCreateParameters
from azure.mgmt.compute import ComputeManagementClient
from azure.mgmt.compute import models as compute_models
from azure.mgmt.keyvault import KeyVaultManagementClient
from azure.mgmt.keyvault import models as vault_models
from azure.mgmt.resource.resources import ResourceManagementClient
from azure.storage.blob import BlobClient

BASE, SUBSCRIPTION, TENANT = (os.environ[name] for name in ("BASE", "SUBSCRIPTION", "TENANT"))
PLATFORM = "EncryptionAtRestWithPlatformKey"
CUSTOMER = "EncryptionAtRestWithCustomerKey"
CRYPTO_OFFICER = "Key Vault Crypto Officer"
ENCRYPTION_USER = "Key Vault Crypto Service Encryption User"

secret = ClientSecretCredential(
    "adfs", os.environ["CLIENT_ID"], os.environ["SECRET"], authority=BASE, disable_instance_discovery=True
)
# What is to be refused is not asked again.
ways = {"base_url": BASE, "credential_scopes": [f"{BASE}/.default"], "retry_total": 0}
compute = ComputeManagementClient(secret, SUBSCRIPTION, **ways)
vaults = KeyVaultManagementClient(secret, SUBSCRIPTION, **ways).vaults
roles = AuthorizationManagementClient(secret, SUBSCRIPTION, **ways)
resources = ResourceManagementClient(ManagedIdentityCredential(), SUBSCRIPTION, **ways)
disks, snapshots, images, sets = compute.disks, compute.snapshots, compute.images, compute.disk_encryption_sets


def refused(status, code, call):
    """Checks that a call is refused, and with which code."""
    try:
        call()
    except HttpResponseError as error:
        found = (error.status_code, error.error and error.error.code)
        assert found == (status, code), (found, error.message)
        return
    raise AssertionError(f"not refused with {status} {code}")


def make(where, name, model):
    return where.begin_create_or_update("rg", name, model).result()


def delete(where, *names):
    for name in names:
        where.begin_delete("rg", name).result()


def names(found):
    return sorted(item.name for item in found)


def encryption(set_id, kind=CUSTOMER):
    return compute_models.Encryption(disk_encryption_set_id=set_id, type=kind)


def empty(set_id=None, size=1):
    return compute_models.Disk(
        location="local",
        disk_size_gb=size,
        creation_data=compute_models.CreationData(create_option="Empty"),
        encryption=set_id and encryption(set_id),
    )


def copy(model, source, option="Copy", **more):
    data = compute_models.CreationData(create_option=option, source_resource_id=source)
    return model(location="local", creation_data=data, **more)


def vault(**properties):
    return vault_models.VaultCreateOrUpdateParameters(
        location="local",
        properties=vault_models.VaultProperties(
            tenant_id=TENANT, sku=vault_models.Sku(family="A", name="standard"), **properties
        ),
    )


def policy(object_id, *permissions):
    return vault_models.AccessPolicyEntry(
        tenant_id=TENANT, object_id=object_id, permissions=vault_models.Permissions(keys_property=list(permissions))
    )


def assign(role, principal, scope):
    found = list(roles.role_definitions.list(scope, filter=f"roleName eq '{role}'"))
    assert len(found) == 1, (role, found)
    parameters = RoleAssignmentCreateParameters(
        role_definition_id=found[0].id, principal_id=principal, principal_type="ServicePrincipal"
    )
    return roles.role_assignments.create(scope, str(uuid.uuid4()), parameters)


def vault_with_policies(name):
    """A vault of which whoever makes it has all permissions; how a set is granted its keys, and how that ends."""
    made = vaults.begin_create_or_update(
        "rg",
        name,
        vault(access_policies=[policy(os.environ["OBJECT_ID"], "all")], enable_rbac_authorization=False),
    ).result()
    assert not made.properties.enable_rbac_authorization

    def change(how, principal, *permissions):
        parameters = vault_models.VaultAccessPolicyParameters(
            properties=vault_models.VaultAccessPolicyProperties(access_policies=[policy(principal, *permissions)])
        )
        vaults.update_access_policy("rg", name, how, parameters)

    def grant(principal):
        change("add", principal, "get", "wrapKey", "unwrapKey")

    def revoke(principal):
        change("remove", principal)

    return made, grant, revoke


def vault_with_roles(name):
    made = vaults.begin_create_or_update("rg", name, vault(enable_purge_protection=True)).result()
    assert made.properties.enable_rbac_authorization
    own = KeyClient(made.properties.vault_uri, secret, retry_total=0)
    refused(403, "Forbidden", lambda: own.create_rsa_key("key", size=2048))
    assign(CRYPTO_OFFICER, os.environ["OBJECT_ID"], made.id)
    assigned = {}

    def grant(principal):
        assigned[principal] = assign(ENCRYPTION_USER, principal, made.id).id

    def revoke(principal):
        roles.role_assignments.delete_by_id(assigned[principal])

    return made, grant, revoke


def workflow(vault_name, made):
    vault, grant, revoke = made
    keys = KeyClient(vault.properties.vault_uri, secret, retry_total=0)
    key = keys.create_rsa_key("key", size=3072)
    source = compute_models.SourceVault(id=vault.id)
    new_set = compute_models.DiskEncryptionSet(
        location="local",
        identity=compute_models.EncryptionSetIdentity(type="SystemAssigned"),
        active_key=compute_models.KeyForDiskEncryptionSet(source_vault=source, key_url=key.id),
    )
    des = make(sets, "des", new_set)
    principal = des.identity.principal_id
    assert (des.active_key.key_url, des.encryption_type) == (key.id, CUSTOMER), des

    # before the grant, and after it
    refused(403, "KeyVaultAccessForbidden", lambda: make(disks, "d1", empty(des.id)))
    refused(404, "ResourceNotFound", lambda: disks.get("rg", "d1"))
    grant(principal)
    d1 = make(disks, "d1", empty(des.id))
    assert (d1.encryption.disk_encryption_set_id, d1.disk_size_gb, d1.disk_state) == (des.id, 1, "Unattached"), d1
    assert make(disks, "d1", empty(des.id)).unique_id == d1.unique_id, "a create that is repeated"

    # into the set and out of it, larger and not smaller
    make(disks, "d2", empty(size=2))
    changed = disks.begin_update("rg", "d2", compute_models.DiskUpdate(encryption=encryption(des.id))).result()
    assert (changed.encryption.type, changed.encryption.disk_encryption_set_id) == (CUSTOMER, des.id)
    assert sorted(sets.list_associated_resources("rg", "des")) == [d1.id, changed.id]
    changed.disk_size_gb, changed.encryption = 3, compute_models.Encryption(type=PLATFORM)
    changed = make(disks, "d2", changed)
    assert (changed.encryption.type, changed.encryption.disk_encryption_set_id) == (PLATFORM, None)
    assert changed.disk_size_gb == 3 and list(sets.list_associated_resources("rg", "des")) == [d1.id]
    refused(409, "ResizeDiskError", lambda: make(disks, "d2", empty(size=1)))

    # snapshots, disks of them, images
    s1 = make(snapshots, "s1", copy(compute_models.Snapshot, d1.id, incremental=True))
    assert s1.incremental and s1.encryption.disk_encryption_set_id == des.id
    d3 = make(disks, "d3", copy(compute_models.Disk, s1.id))
    assert d3.encryption.disk_encryption_set_id == des.id and d3.creation_data.source_resource_id == s1.id
    start = compute_models.DiskCreateOption.COPY_START
    for where, model in ((snapshots, compute_models.Snapshot), (disks, compute_models.Disk)):
        deep = make(where, "deep", copy(model, s1.id, start))
        assert (deep.creation_data.create_option, deep.completion_percent) == (start, 100), deep
        delete(where, "deep")
    os_disk = compute_models.ImageOSDisk(
        os_type="Linux", os_state="Generalized", managed_disk=compute_models.SubResource(id=d1.id)
    )
    profile = compute_models.ImageStorageProfile(os_disk=os_disk)
    i1 = make(images, "i1", compute_models.Image(location="local", storage_profile=profile))
    assert i1.storage_profile.os_disk.managed_disk.id == d1.id
    assert names(disks.list_by_resource_group("rg")) == ["d1", "d2", "d3"]
    assert names(snapshots.list_by_resource_group("rg")) == ["s1"] and names(images.list_by_resource_group("rg")) == ["i1"]
    kept = sets.list_associated_resources("rg", "des")
    assert sorted(path.rsplit("/", 1)[1] for path in kept) == ["d1", "d3", "i1", "s1"]

    # tags, by which resources are found
    tagged = disks.begin_update("rg", "d2", compute_models.DiskUpdate(tags={"purpose": "test"})).result()
    assert tagged.tags == {"purpose": "test"}
    assert names(resources.resources.list(filter="tagName eq 'purpose' and tagValue eq 'test'")) == ["d2"]

    # a key that is disabled, and a grant that is taken back
    keys.update_key_properties("key", enabled=False)
    refused(403, "KeyVaultAccessForbidden", lambda: make(disks, "d4", empty(des.id)))
    refused(403, "KeyVaultAccessForbidden", lambda: make(disks, "d4", copy(compute_models.Disk, s1.id)))
    keys.update_key_properties("key", enabled=True)
    revoke(principal)
    refused(403, "KeyVaultAccessForbidden", lambda: make(disks, "d4", empty(des.id)))
    grant(principal)

    # another version of the key, followed by the set
    follow = compute_models.DiskEncryptionSetUpdate(rotation_to_latest_key_version_enabled=True)
    assert sets.begin_update("rg", "des", follow).result().rotation_to_latest_key_version_enabled
    rotated = keys.rotate_key("key")
    assert rotated.id != key.id

    # deletions that must not be, and those that may
    refused(409, "InUseDiskEncryptionSetCannotBeDeleted", lambda: delete(sets, "des"))
    refused(409, "OperationNotAllowed", lambda: delete(snapshots, "s1"))
    refused(409, "VaultInUse", lambda: vaults.delete("rg", vault_name))
    delete(disks, "d3")
    delete(snapshots, "s1")
    delete(images, "i1")
    delete(disks, "d1", "d2")
    delete(disks, "d1")  # once more
    delete(sets, "des")
    vaults.delete("rg", vault_name)
    refused(404, "ResourceNotFound", lambda: vaults.get("rg", vault_name))
    assert vault_name in names(vaults.list_deleted())


def transfer():
    """An upload and a download by Azure's storage SDK, with its checks of what is transferred."""
    size = 1 << 20
    creation = compute_models.CreationData(create_option="Upload", upload_size_bytes=size + 512)
    make(disks, "up", compute_models.Disk(location="local", creation_data=creation))

    def granted(name, access):
        data = compute_models.GrantAccessData(access=access, duration_in_seconds=600)
        url = disks.begin_grant_access("rg", name, data).result().access_sas
        return BlobClient.from_blob_url(url)

    blob = granted("up", "Write")
    assert blob.get_blob_properties().size == size + 512
    blob.upload_page(bytes(range(256)) * 2048, offset=0, length=512 << 10, validate_content=True)
    refused(409, "InvalidVhd", lambda: disks.begin_revoke_access("rg", "up").result())
    begun = time.monotonic()
    try:
        blob.upload_page(bytes(size), offset=0, length=size)
    except HttpResponseError as error:
        assert error.status_code == 403, error
    else:
        raise AssertionError("access is revoked")
    # what has said so at once is not asked again
    assert time.monotonic() - begun < 10

    make(disks, "down", empty())
    blob = granted("down", "Read")
    assert blob.download_blob(offset=4096, length=4096, validate_content=True).readall() == bytes(4096)
    disks.begin_revoke_access("rg", "down").result()
    delete(disks, "up", "down")


groups = resources.resource_groups
groups.create_or_update("rg", {"location": "local", "tags": {"by": "sdk"}})
assert groups.check_existence("rg") and not groups.check_existence("other")
refused(404, "ResourceGroupNotFound", lambda: groups.get("other"))
transfer()
for name, how in (("kvpol", vault_with_policies), ("kvrole", vault_with_roles)):
    workflow(name, how(name))
vaults.begin_purge_deleted("kvpol", "local").result()
refused(403, "MethodNotAllowed", lambda: vaults.begin_purge_deleted("kvrole", "local").result())
groups.begin_delete("rg").result()
assert not groups.check_existence("rg")
