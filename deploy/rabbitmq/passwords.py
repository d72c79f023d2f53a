"""Gives the users of definitions.json their passwords: `python3 passwords.py IN OUT`, which RabbitMQ then imports.

    NODE_CHECKOUT_PASSWORD=... WORKER_PASSWORD=... python3 passwords.py definitions.json /etc/rabbitmq/definitions.json
    rabbitmqctl import_definitions /etc/rabbitmq/definitions.json      or: load_definitions = ... in rabbitmq.conf

Each password comes from the environment, from a variable named like the user (`node-checkout`: NODE_CHECKOUT_PASSWORD).
A user without one stays locked out, since no password is right. What is written holds salted SHA-256 hashes and no
password. Needs nothing but Python.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def password_hash(password: str, salt: bytes) -> str:
    """What RabbitMQ keeps of a password (its guide): the salt of 4 bytes and the SHA-256 of both, in base64."""
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def with_passwords(definitions: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """The definitions with a hash for each user whose variable is set."""
    users = []
    for user in definitions["users"]:
        password = environment.get(variable(user["name"]))
        users.append({**user, "password_hash": password_hash(password, secrets.token_bytes(4))} if password else user)
    return {**definitions, "users": users}


def variable(user: str) -> str:
    """Where a user's password is."""
    return user.upper().replace("-", "_") + "_PASSWORD"


def main(source: str, target: str) -> None:
    """Read, add, write; and say who stays locked out."""
    definitions = with_passwords(json.loads(Path(source).read_text()), os.environ)
    Path(target).write_text(json.dumps(definitions, indent=1))
    locked = [user["name"] for user in definitions["users"] if not user["password_hash"]]
    if locked:
        sys.stderr.write(f"locked out, since no {variable(locked[0])} or the like is set: {', '.join(locked)}\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:  # noqa: PLR2004 - two arguments
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
