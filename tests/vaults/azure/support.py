"""What the scripts of the Python SDK have in common.

Each is started with the address of a real `keyvault serve` in its environment and ends with status 0
if everything is as expected.
"""

import os
import socket
from urllib.parse import urlparse

from azure.core.exceptions import HttpResponseError
from azure.identity import ManagedIdentityCredential
from azure.keyvault.keys import KeyClient
from azure.keyvault.keys.crypto import CryptographyClient

VAULT = os.environ["TEST_VAULT_URL"]


def _resolve_localhost():
    """RFC 6761 has *.localhost mean this host, which not every resolver knows."""
    real = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        if isinstance(host, str) and host.endswith(".localhost"):
            host = "127.0.0.1"
        return real(host, *args, **kwargs)

    socket.getaddrinfo = getaddrinfo


_resolve_localhost()


def keys(vault=VAULT, **options):
    """A client of a vault, with the managed identity that the environment names. What is to be
    refused is not asked again."""
    return KeyClient(vault, ManagedIdentityCredential(), retry_total=0, **options)


def crypto(key, **options):
    return CryptographyClient(key, ManagedIdentityCredential(), retry_total=0, **options)


def refused(status, code, inner, call):
    """Checks that a call is refused, and with which codes; returns the message."""
    try:
        call()
    except HttpResponseError as error:
        assert error.status_code == status, (error.status_code, status, error.message)
        body = error.error
        assert body is not None, error
        assert body.code == code, (body.code, code, error.message)
        found = (body.innererror or {}).get("code")
        assert found == inner, (found, inner, error.message)
        return error.message
    raise AssertionError(f"not refused with {status} {code} {inner}")


def has_host_of_vault(key_id):
    assert urlparse(key_id).netloc == urlparse(VAULT).netloc, key_id
