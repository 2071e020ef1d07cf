"""Every refusal that the SDK can be told, with its status and codes."""

import os
from datetime import datetime, timedelta, timezone

from azure.keyvault.keys import JsonWebKey, KeyOperation
from azure.keyvault.keys.crypto import KeyWrapAlgorithm

from support import crypto, keys, refused

OAEP = KeyWrapAlgorithm.rsa_oaep_256
client = keys()


def unwrap(key, value=b"\0" * 256):
    return lambda: crypto(key).unwrap_key(OAEP, value)


# what is not there
message = refused(404, "KeyNotFound", None, lambda: client.get_key("none"))
assert "none" in message
refused(404, "KeyNotFound", None, lambda: client.get_deleted_key("none"))
refused(404, "KeyNotFound", None, lambda: client.update_key_properties("none", enabled=True))
key = client.create_rsa_key("refused", size=2048)
refused(404, "KeyNotFound", None, lambda: client.get_key("refused", "0" * 32))

# what makes no sense
refused(400, "BadParameter", None, lambda: client.get_key("refused", "zzz"))
refused(400, "BadParameter", None, lambda: client.create_rsa_key("refused", size=1024))
refused(400, "BadParameter", None, lambda: client.create_ec_key("curve"))
refused(400, "BadParameter", None, lambda: client.create_rsa_key("hsm", hardware_protected=True))
refused(400, "BadParameter", None, lambda: client.get_random_bytes(129))
refused(400, "BadParameter", None, lambda: client.restore_key_backup(b"no backup"))
empty = JsonWebKey(kty="RSA", n=b"\1" * 256, e=b"\1\0\1", d=b"\2" * 256)
refused(400, "BadParameter", None, lambda: client.import_key("broken", empty))

# what cannot be used now
other = client.create_rsa_key("other", size=2048)
wrapped = crypto(other).wrap_key(OAEP, b"secret").encrypted_key
of_another = refused(400, "BadParameter", None, unwrap(key, wrapped))
own = crypto(key).wrap_key(OAEP, b"secret").encrypted_key
for broken in (own[:-1], own + b"\0", b"", b"\xff" * 256):
    message = refused(400, "BadParameter", None, unwrap(key, broken))
    assert message == of_another, "one error for everything that is wrong with a wrapped secret"

version = key.properties.version
client.update_key_properties("refused", version, enabled=False)
message = refused(403, "Forbidden", "KeyDisabled", unwrap(key.id, own))
assert "disabled" in message, message
now = datetime.now(timezone.utc)
client.update_key_properties(
    "refused", version, enabled=True, not_before=now - timedelta(days=2), expires_on=now - timedelta(days=1)
)
refused(403, "Forbidden", "KeyExpired", unwrap(key.id, own))
client.update_key_properties(
    "refused", version, not_before=now + timedelta(days=1), expires_on=now + timedelta(days=2)
)
refused(403, "Forbidden", "KeyNotYetValid", unwrap(key.id, own))
limited = client.create_rsa_key("limited-ops", key_operations=[KeyOperation.wrap_key])
refused(403, "Forbidden", "KeyOperationForbidden", unwrap(limited.id))

# what is deleted
client.begin_delete_key("other").result()
refused(404, "KeyNotFound", None, lambda: client.get_key("other"))
taken = lambda: client.create_rsa_key("other")
message = refused(409, "Conflict", "ObjectIsDeletedButRecoverable", taken)
assert "deleted" in message, message
client.purge_deleted_key("other")
refused(404, "KeyNotFound", None, lambda: client.purge_deleted_key("other"))

# a vault that protects against purging
protected = keys(os.environ["TEST_PROTECTED_VAULT_URL"])
protected.create_rsa_key("kept")
protected.begin_delete_key("kept").result()
refused(403, "Forbidden", "ForbiddenByPolicy", lambda: protected.purge_deleted_key("kept"))
protected.begin_recover_deleted_key("kept").result()

# what was not granted
foreign = keys(os.environ["TEST_FOREIGN_VAULT_URL"])
for call in (
    lambda: foreign.get_key("k"),
    lambda: foreign.create_rsa_key("k"),
    lambda: list(foreign.list_properties_of_keys()),
    lambda: foreign.begin_delete_key("k").result(),
    lambda: foreign.get_random_bytes(1),
):
    message = refused(403, "Forbidden", "AccessDenied", call)
    assert "does not have the key permission" in message, message

# a vault that is not there
nowhere = keys(os.environ["TEST_VAULT_URL"].replace("myvault", "nowhere"))
refused(404, "VaultNotFound", None, lambda: nowhere.get_key("k"))
