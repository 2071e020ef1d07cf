"""Everything that the SDK does with keys, in the life of some of them."""

import time
from datetime import datetime, timedelta, timezone

from azure.keyvault.keys import (
    JsonWebKey,
    KeyOperation,
    KeyRotationLifetimeAction,
    KeyRotationPolicy,
    KeyRotationPolicyAction,
)
from azure.keyvault.keys.crypto import EncryptionAlgorithm, KeyWrapAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from support import crypto, has_host_of_vault, keys

client = keys()


def number(value):
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


# create
start = datetime.now(timezone.utc).replace(microsecond=0) - timedelta(hours=1)
key = client.create_rsa_key(
    "first",
    size=2048,
    not_before=start,
    expires_on=start + timedelta(days=30),
    tags={"purpose": "test"},
)
has_host_of_vault(key.id)
assert key.key_type == "RSA" and len(key.key.n) == 256
assert key.properties.enabled and key.properties.not_before == start
assert key.properties.expires_on == start + timedelta(days=30)
assert key.properties.tags == {"purpose": "test"}
assert key.properties.recoverable_days == 90, key.properties.recoverable_days
for size in (3072, 4096):
    assert len(client.create_rsa_key(f"size-{size}", size=size).key.n) == size // 8
limited = client.create_rsa_key("limited", key_operations=[KeyOperation.wrap_key])
assert limited.key_operations == ["wrapKey"], limited.key_operations

# get, versions, list
assert client.get_key("first").id == key.id
assert client.get_key("first", key.properties.version).id == key.id
second = client.create_rsa_key("first", size=2048)
assert second.properties.version != key.properties.version
versions = [v.version for v in client.list_properties_of_key_versions("first")]
assert sorted(versions) == sorted([key.properties.version, second.properties.version])

# import
own = rsa.generate_private_key(65537, 2048)
private = own.private_numbers()
jwk = JsonWebKey(
    kty="RSA",
    key_ops=["wrapKey", "unwrapKey", "encrypt", "decrypt"],
    n=number(private.public_numbers.n),
    e=number(private.public_numbers.e),
    d=number(private.d),
    p=number(private.p),
    q=number(private.q),
    dp=number(private.dmp1),
    dq=number(private.dmq1),
    qi=number(private.iqmp),
)
imported = client.import_key("imported", jwk, tags={"from": "outside"})
assert imported.key.n == number(private.public_numbers.n)
for n in range(27):
    client.import_key(f"many-{n:02}", jwk)
names = [k.name for k in client.list_properties_of_keys()]
assert len(names) == len(set(names)), "a page repeats a key"
assert set(names) >= {"first", "limited", "imported", "many-00", "many-26"}, names
names = [k.name for k in client.list_properties_of_keys(max_page_size=7)]
assert len(names) == len(set(names)) >= 30

# wrap and unwrap, encrypt and decrypt
secret = b"k" * 64
box = crypto(imported)
for algorithm in (KeyWrapAlgorithm.rsa_oaep_256, KeyWrapAlgorithm.rsa_oaep):
    wrapped = box.wrap_key(algorithm, secret)
    assert box.unwrap_key(algorithm, wrapped.encrypted_key).key == secret
for algorithm in (EncryptionAlgorithm.rsa_oaep_256, EncryptionAlgorithm.rsa_oaep):
    sealed = box.encrypt(algorithm, b"data")
    assert box.decrypt(algorithm, sealed.ciphertext).plaintext == b"data"
# What is wrapped by the public key elsewhere the vault unwraps, and the other way round.
oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
elsewhere = own.public_key().encrypt(secret, oaep)
unwrapped = box.unwrap_key(KeyWrapAlgorithm.rsa_oaep_256, elsewhere)
assert unwrapped.key == secret and unwrapped.key_id == imported.id
here = box.wrap_key(KeyWrapAlgorithm.rsa_oaep_256, secret).encrypted_key
assert own.decrypt(here, oaep) == secret
# Without a version the latest one wraps.
versionless = crypto(imported.id.rsplit("/", 1)[0])
assert versionless.wrap_key(KeyWrapAlgorithm.rsa_oaep_256, secret).key_id == imported.id

# update
changed = client.update_key_properties("first", second.properties.version, enabled=False)
assert changed.properties.enabled is False
changed = client.update_key_properties(
    "first",
    second.properties.version,
    enabled=True,
    tags={"a": "b"},
    key_operations=[KeyOperation.unwrap_key],
)
assert changed.properties.enabled and changed.properties.tags == {"a": "b"}
assert changed.key_operations == ["unwrapKey"]

# rotate, rotation policy
rotated = client.rotate_key("imported")
assert rotated.properties.version != imported.properties.version
assert rotated.key.n != imported.key.n
assert client.get_key("imported").id == rotated.id
assert box.unwrap_key(KeyWrapAlgorithm.rsa_oaep_256, elsewhere).key == secret
rotate = KeyRotationLifetimeAction(KeyRotationPolicyAction.rotate, time_after_create="P90D")
policy = KeyRotationPolicy(lifetime_actions=[rotate], expires_in="P120D")
set_policy = client.update_key_rotation_policy("imported", policy)
got = client.get_key_rotation_policy("imported")
for found in (set_policy, got):
    assert found.expires_in == "P120D", found.expires_in
    actions = {a.action: a.time_after_create for a in found.lifetime_actions}
    assert str(actions[KeyRotationPolicyAction.rotate]) == "P90D", actions
    assert found.id.endswith("/keys/imported/rotationpolicy"), found.id

# backup, delete, recover, purge, restore
backup = client.backup_key("imported")
deleted = client.begin_delete_key("imported").result()
assert deleted.recovery_id.endswith("/deletedkeys/imported"), deleted.recovery_id
has_host_of_vault(deleted.recovery_id)
assert deleted.scheduled_purge_date > deleted.deleted_date
assert "imported" in [k.name for k in client.list_deleted_keys()]
assert client.get_deleted_key("imported").name == "imported"
recovered = client.begin_recover_deleted_key("imported").result()
assert recovered.name == "imported"
assert client.get_key("imported").id == rotated.id
client.begin_delete_key("imported").result()
client.purge_deleted_key("imported")
assert "imported" not in [k.name for k in client.list_deleted_keys()]
restored = client.restore_key_backup(backup)
assert restored.id == rotated.id
assert box.unwrap_key(KeyWrapAlgorithm.rsa_oaep_256, elsewhere).key == secret

# random bytes
for count in (1, 128):
    assert len(client.get_random_bytes(count)) == count
assert client.get_random_bytes(32) != client.get_random_bytes(32)

# Every version of the API.
for version in ("7.0", "7.1", "7.2", "7.3", "7.4", "7.5", "7.6", "2025-07-01"):
    older = keys(api_version=version)
    assert older.get_key("first").name == "first", version

print("done", time.process_time())
