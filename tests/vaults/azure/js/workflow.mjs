// Everything that the JavaScript SDK does with keys, and the refusals that it is told.

import assert from "node:assert/strict";
import { createPublicKey, constants, generateKeyPairSync, publicEncrypt } from "node:crypto";
import dns from "node:dns";

import { ManagedIdentityCredential } from "@azure/identity";
import { CryptographyClient, KeyClient } from "@azure/keyvault-keys";

const VAULT = process.env.TEST_VAULT_URL;

// RFC 6761 has *.localhost mean this host, which not every resolver knows.
const lookup = dns.lookup;
dns.lookup = (host, ...rest) =>
  lookup(host.endsWith(".localhost") ? "127.0.0.1" : host, ...rest);

// What is to be refused is not asked again.
const options = { retryOptions: { maxRetries: 0 } };
const client = (vault, more = {}) =>
  new KeyClient(vault, new ManagedIdentityCredential(), { ...options, ...more });
const crypto = (key) => new CryptographyClient(key, new ManagedIdentityCredential(), options);

// This SDK leaves the inner code out, so the message has to say what it says.
async function refused(status, code, text, call) {
  try {
    await call();
  } catch (error) {
    assert.equal(error.statusCode, status, `${error.message}`);
    assert.equal(error.code, code, error.message);
    assert.match(error.message, text);
    return;
  }
  assert.fail(`not refused with ${status} ${code}`);
}

async function all(pages) {
  const found = [];
  for await (const item of pages) found.push(item);
  return found;
}

const keys = client(VAULT);

// create, get, versions
const expiresOn = new Date(Date.now() + 30 * 24 * 3600 * 1000);
expiresOn.setMilliseconds(0);
const first = await keys.createRsaKey("js-first", {
  keySize: 2048,
  expiresOn,
  tags: { purpose: "test" },
});
assert.equal(new URL(first.id).host, new URL(VAULT).host);
assert.equal(first.keyType, "RSA");
assert.deepEqual(first.properties.expiresOn, expiresOn);
assert.deepEqual(first.properties.tags, { purpose: "test" });
const second = await keys.createKey("js-first", "RSA", { keySize: 2048 });
assert.notEqual(second.properties.version, first.properties.version);
assert.equal((await keys.getKey("js-first")).id, second.id);
assert.equal((await keys.getKey("js-first", { version: first.properties.version })).id, first.id);
const versions = await all(keys.listPropertiesOfKeyVersions("js-first"));
assert.equal(versions.length, 2);

// import, list
const { privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
const jwk = privateKey.export({ format: "jwk" });
const bytes = (text) => Buffer.from(text, "base64url");
const material = { kty: "RSA", keyOps: ["wrapKey", "unwrapKey", "encrypt", "decrypt"] };
for (const name of ["n", "e", "d", "p", "q", "dp", "dq", "qi"]) material[name] = bytes(jwk[name]);
const imported = await keys.importKey("js-imported", material);
assert.deepEqual(Buffer.from(imported.key.n), material.n);
for (let n = 0; n < 27; n++) await keys.importKey(`js-many-${n}`, material);
const names = (await all(keys.listPropertiesOfKeys())).map((key) => key.name);
assert.equal(new Set(names).size, names.length, "a page repeats a key");
assert.ok(names.includes("js-many-26") && names.includes("js-first"), `${names}`);

// wrap and unwrap, encrypt and decrypt
const secret = Buffer.alloc(64, "k");
const box = crypto(imported);
for (const algorithm of ["RSA-OAEP-256", "RSA-OAEP"]) {
  const wrapped = await box.wrapKey(algorithm, secret);
  assert.deepEqual(Buffer.from((await box.unwrapKey(algorithm, wrapped.result)).result), secret);
  const sealed = await box.encrypt({ algorithm, plaintext: secret });
  const opened = await box.decrypt({ algorithm, ciphertext: sealed.result });
  assert.deepEqual(Buffer.from(opened.result), secret);
}
const oaep = { padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: "sha256" };
const elsewhere = publicEncrypt({ key: createPublicKey(privateKey), ...oaep }, secret);
const unwrapped = await box.unwrapKey("RSA-OAEP-256", elsewhere);
assert.deepEqual(Buffer.from(unwrapped.result), secret);
assert.equal(unwrapped.keyID, imported.id);

// update
const update = (change) =>
  keys.updateKeyProperties("js-first", second.properties.version, change);
assert.equal((await update({ enabled: false })).properties.enabled, false);
await refused(403, "Forbidden", /disabled/, () => crypto(second.id).unwrapKey("RSA-OAEP-256", elsewhere));
const updated = await update({ enabled: true, tags: { a: "b" }, keyOps: ["unwrapKey"] });
assert.deepEqual(updated.properties.tags, { a: "b" });
assert.deepEqual(updated.keyOperations, ["unwrapKey"]);

// rotate, rotation policy
const rotated = await keys.rotateKey("js-imported");
assert.notEqual(rotated.properties.version, imported.properties.version);
const policy = {
  expiresIn: "P120D",
  lifetimeActions: [{ action: "Rotate", timeAfterCreate: "P90D" }],
};
await keys.updateKeyRotationPolicy("js-imported", policy);
const got = await keys.getKeyRotationPolicy("js-imported");
assert.equal(got.expiresIn, "P120D");
const rotate = got.lifetimeActions.find((action) => action.action === "Rotate");
assert.equal(rotate.timeAfterCreate, "P90D");

// backup, delete, recover, purge, restore
const backup = await keys.backupKey("js-imported");
const poll = { intervalInMs: 100 };
const deletion = await keys.beginDeleteKey("js-imported", poll);
const deleted = await deletion.pollUntilDone();
assert.ok(deleted.properties.scheduledPurgeDate > deleted.properties.deletedOn);
assert.ok((await all(keys.listDeletedKeys())).some((key) => key.name === "js-imported"));
assert.equal((await keys.getDeletedKey("js-imported")).name, "js-imported");
await refused(409, "Conflict", /deleted/, () => keys.createRsaKey("js-imported"));
await (await keys.beginRecoverDeletedKey("js-imported", poll)).pollUntilDone();
assert.equal((await keys.getKey("js-imported")).id, rotated.id);
await (await keys.beginDeleteKey("js-imported", poll)).pollUntilDone();
await keys.purgeDeletedKey("js-imported");
await refused(404, "KeyNotFound", /js-imported/, () => keys.getDeletedKey("js-imported"));
assert.equal((await keys.restoreKeyBackup(backup)).id, rotated.id);
assert.deepEqual(Buffer.from((await box.unwrapKey("RSA-OAEP-256", elsewhere)).result), secret);

// random bytes
assert.equal((await keys.getRandomBytes(32)).length, 32);

// errors
await refused(404, "KeyNotFound", /none/, () => keys.getKey("none"));
await refused(400, "BadParameter", /1024/, () => keys.createRsaKey("js-small", { keySize: 1024 }));
await refused(400, "BadParameter", /./, () => box.unwrapKey("RSA-OAEP-256", Buffer.alloc(256)));
const foreign = client(process.env.TEST_FOREIGN_VAULT_URL);
await refused(403, "Forbidden", /does not have the key permission 'get'/, () => foreign.getKey("k"));

for (const serviceVersion of ["7.0", "7.1", "7.2", "7.3", "7.4", "7.5", "7.6"]) {
  const older = client(VAULT, { serviceVersion });
  assert.equal((await older.getKey("js-first")).name, "js-first", serviceVersion);
}
