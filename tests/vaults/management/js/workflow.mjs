// The documented workflow by Azure's management SDKs for JavaScript, and the refusals.

import assert from "node:assert/strict";
import dns from "node:dns";

import { ComputeManagementClient } from "@azure/arm-compute";
import { KeyVaultManagementClient } from "@azure/arm-keyvault";
import { ResourceManagementClient } from "@azure/arm-resources";
import { ClientSecretCredential, ManagedIdentityCredential } from "@azure/identity";
import { KeyClient } from "@azure/keyvault-keys";

const { BASE, SUBSCRIPTION, TENANT, CLIENT_ID, OBJECT_ID, SECRET } = process.env;

// RFC 6761 has *.localhost mean this host, which not every resolver knows.
const lookup = dns.lookup;
dns.lookup = (host, ...rest) => lookup(host.endsWith(".localhost") ? "127.0.0.1" : host, ...rest);

// What is to be refused is not asked again.
const retryOptions = { maxRetries: 0 };
const options = { endpoint: BASE, credentials: { scopes: [`${BASE}/.default`] }, retryOptions };
const secret = new ClientSecretCredential("adfs", CLIENT_ID, SECRET, {
  authorityHost: BASE,
  disableInstanceDiscovery: true,
});
const { disks, snapshots, images, diskEncryptionSets: sets } = new ComputeManagementClient(secret, SUBSCRIPTION, options);
const { vaults } = new KeyVaultManagementClient(secret, SUBSCRIPTION, options);
const { resourceGroups: groups } = new ResourceManagementClient(new ManagedIdentityCredential(), SUBSCRIPTION, options);

async function refused(status, code, call) {
  try {
    await call();
  } catch (error) {
    assert.equal(error.statusCode, status, error.message);
    assert.equal(error.code, code, error.message);
    return;
  }
  assert.fail(`not refused with ${status} ${code}`);
}

async function names(pages) {
  const found = [];
  for await (const item of pages) found.push(item.name ?? item);
  return found.sort();
}

const policy = (objectId, keys) => ({ tenantId: TENANT, objectId, permissions: { keys } });
const empty = (set) => ({
  location: "local",
  diskSizeGB: 1,
  creationData: { createOption: "Empty" },
  ...(set && { encryption: { type: "EncryptionAtRestWithCustomerKey", diskEncryptionSetId: set } }),
});
const copy = (sourceResourceId) => ({ location: "local", creationData: { createOption: "Copy", sourceResourceId } });

// group, vault, key, set
await groups.createOrUpdate("rg", { location: "local" });
const vault = await vaults.createOrUpdate("rg", "kvjs", {
  location: "local",
  properties: {
    tenantId: TENANT,
    sku: { family: "A", name: "standard" },
    enableRbacAuthorization: false,
    accessPolicies: [policy(OBJECT_ID, ["all"])],
  },
});
const keys = new KeyClient(vault.properties.vaultUri, secret, { retryOptions });
const key = await keys.createRsaKey("key", { keySize: 2048 });
const des = await sets.createOrUpdate("rg", "des", {
  location: "local",
  identity: { type: "SystemAssigned" },
  activeKey: { sourceVault: { id: vault.id }, keyUrl: key.id },
});

// before the grant, and after it
await refused(403, "KeyVaultAccessForbidden", () => disks.createOrUpdate("rg", "d1", empty(des.id)));
await vaults.updateAccessPolicy("rg", "kvjs", "add", {
  properties: { accessPolicies: [policy(des.identity.principalId, ["get", "wrapKey", "unwrapKey"])] },
});
const d1 = await disks.createOrUpdate("rg", "d1", empty(des.id));
assert.equal(d1.encryption.diskEncryptionSetId, des.id);

// into the set and out of it
await disks.createOrUpdate("rg", "d2", empty());
const into = { encryption: { type: "EncryptionAtRestWithCustomerKey", diskEncryptionSetId: des.id } };
assert.equal((await disks.update("rg", "d2", into)).encryption.diskEncryptionSetId, des.id);
const d2 = await disks.get("rg", "d2");
const out = { ...d2, diskSizeGB: 2, encryption: { type: "EncryptionAtRestWithPlatformKey" } };
const changed = await disks.createOrUpdate("rg", "d2", out);
assert.equal(changed.encryption.diskEncryptionSetId, undefined);
assert.equal(changed.diskSizeGB, 2);
await refused(409, "ResizeDiskError", () => disks.createOrUpdate("rg", "d2", empty()));

// snapshots, disks of them, images
const s1 = await snapshots.createOrUpdate("rg", "s1", { ...copy(d1.id), incremental: true });
assert.equal(s1.incremental, true);
const d3 = await disks.createOrUpdate("rg", "d3", copy(s1.id));
assert.equal(d3.encryption.diskEncryptionSetId, des.id);
for (const where of [snapshots, disks]) {
  const creationData = { createOption: "CopyStart", sourceResourceId: s1.id };
  const deep = await where.createOrUpdate("rg", "deep", { location: "local", creationData });
  assert.equal(deep.completionPercent, 100);
  await where.delete("rg", "deep");
}
await images.createOrUpdate("rg", "i1", {
  location: "local",
  storageProfile: { osDisk: { osType: "Linux", osState: "Generalized", managedDisk: { id: d1.id } } },
});
assert.deepEqual(await names(disks.listByResourceGroup("rg")), ["d1", "d2", "d3"]);
const kept = await names(sets.listAssociatedResources("rg", "des"));
assert.deepEqual(kept.map((id) => id.split("/").pop()).sort(), ["d1", "d3", "i1", "s1"]);

// a key that is disabled
await keys.updateKeyProperties("key", { enabled: false });
await refused(403, "KeyVaultAccessForbidden", () => disks.createOrUpdate("rg", "d4", empty(des.id)));
await keys.updateKeyProperties("key", { enabled: true });

// deletions that must not be, and those that may
await refused(409, "InUseDiskEncryptionSetCannotBeDeleted", () => sets.delete("rg", "des"));
await refused(409, "OperationNotAllowed", () => snapshots.delete("rg", "s1"));
await refused(409, "VaultInUse", () => vaults.delete("rg", "kvjs"));
for (const disk of ["d1", "d2", "d3"]) await disks.delete("rg", disk);
await snapshots.delete("rg", "s1");
await images.delete("rg", "i1");
await sets.delete("rg", "des");
await vaults.delete("rg", "kvjs");
await vaults.purgeDeleted("kvjs", "local");
await groups.delete("rg");
await refused(404, "ResourceGroupNotFound", () => groups.get("rg"));
