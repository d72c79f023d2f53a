"""S4: what deploy/rabbitmq/definitions.json says, and the script that gives its users passwords."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

_PLACE = Path(__file__).parents[2] / "deploy" / "rabbitmq"
DEFINITIONS = json.loads((_PLACE / "definitions.json").read_text())


def test_no_password_and_no_tag_that_lets_anybody_be_another_is_in_the_repository() -> None:
    """S4, S5: users are locked out until they get a password; `impersonator` would make user_id worth nothing."""
    for user in DEFINITIONS["users"]:
        assert user["password_hash"] == ""
        assert user["tags"] == (["administrator"] if user["name"] == "admin" else [])


def test_every_node_and_the_operators_have_a_rule_for_routing_keys() -> None:
    """S4: with no topic permission at all, RabbitMQ allows every routing key; so that there is a rule is tested."""
    rules = {(rule["user"], rule["exchange"]): rule for rule in DEFINITIONS["topic_permissions"]}
    may_write = {rule["user"]: rule["write"] for rule in DEFINITIONS["permissions"]}
    nodes = [user for user in may_write if user.startswith("node-")]
    assert nodes
    for user in nodes:
        assert may_write[user] == r"^swarm\.records$"
        assert not re.search(rules[user, "swarm.records"]["write"], "other")
    assert ("operator", "swarm.control") in rules
    writers_anywhere = [user for user, pattern in may_write.items() if re.search(pattern, "amq.default")]
    assert writers_anywhere == ["admin", "worker"]  # the worker answers commands, at addresses on its allow-list


def test_the_script_adds_hashes_of_the_passwords_given_and_changes_nothing_else(tmp_path: Path) -> None:
    """Salted, so that equal passwords do not look it; whoever is given none stays locked out and is named."""
    target = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, str(_PLACE / "passwords.py"), str(_PLACE / "definitions.json"), str(target)],
        env={"WORKER_PASSWORD": "canary", "NODE_CHECKOUT_PASSWORD": "canary"},
        capture_output=True, text=True, check=True, timeout=20,
    )  # fmt: skip
    text = target.read_text()
    assert "canary" not in text + done.stdout + done.stderr
    assert done.stderr.strip().endswith("locked out, since no ADMIN_PASSWORD or the like is set: "
                                        "admin, operator, node-demo, service-planner")  # fmt: skip
    made = json.loads(text)
    hashes = {user["name"]: user.pop("password_hash") for user in made["users"]}
    assert [name for name, one in hashes.items() if one] == ["worker", "node-checkout"]
    assert hashes["worker"] != hashes["node-checkout"]
    raw = base64.b64decode(hashes["worker"])
    assert raw[4:] == hashlib.sha256(raw[:4] + b"canary").digest()
    plain = {**DEFINITIONS, "users": [{**user} for user in DEFINITIONS["users"]]}
    for user in plain["users"]:
        del user["password_hash"]
    assert made == plain
