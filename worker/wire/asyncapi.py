"""The AsyncAPI 3.0.0 document: which message travels where, seen from the worker."""

from __future__ import annotations

from typing import Any

from worker.wire.commands import COMMANDS
from worker.wire.events import CONTENT_TYPE, EVENTS
from worker.wire.names import CONTROL_EXCHANGE, LEARNING_EXCHANGE, RECORDS_EXCHANGE
from worker.wire.signing import KEY_HEADER, SIGNATURE_HEADER

Tree = dict[str, Any]
_BINDING = "0.3.0"
_SCENARIO = {"scenario": {"description": "The scenario: 1 to 64 letters, digits, - and _."}}
_WORKER = {"worker_id": {"description": "The worker's own name."}}
_DESCRIPTION = (
    "A worker that learns from what swarms of LLM agents do. Swarm nodes publish batches of records, services follow "
    "learning events, operators send commands. Everything is AMQP 0-9-1 on RabbitMQ."
)


def asyncapi_document() -> Tree:
    """The document as a plain tree. Payloads lie beside it as JSON Schemas."""
    channels = {"records": _records_channel()}
    channels |= {_name(type_): _event_channel(type_) for type_ in EVENTS}
    channels |= _control_channels()
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Swarm learning worker", "version": "1.0.0", "description": _DESCRIPTION},
        "defaultContentType": "application/json",
        "servers": {
            "rabbitmq": {
                "host": "localhost:5672",
                "protocol": "amqp",
                "protocolVersion": "0-9-1",
                "description": "RabbitMQ 3.10 or newer.",
            }
        },
        "channels": channels,
        "operations": _operations(),
        "components": {"messages": _messages()},
    }


def _records_channel() -> Tree:
    return _channel(
        RECORDS_EXCHANGE,
        "{scenario}",
        ["recordsBatch"],
        "Batches of records. The keys <scenario>.# and swarm.records.<scenario> lead to the same queue. "
        "Publish persistent and mandatory, with confirms: the broker also confirms what no queue is there for, and "
        "returns it only if told to.",
        _SCENARIO,
    )


def _event_channel(type_: str) -> Tree:
    return _channel(
        LEARNING_EXCHANGE,
        f"{type_}.{{scenario}}",
        [_name(type_)],
        f"Bind {type_} for all scenarios, {type_}.<scenario> for one, learning.# for every event.",
        _SCENARIO,
    )


def _control_channels() -> Tree:
    broadcasts, jobs = _commands("broadcast"), _commands("job")
    control = CONTROL_EXCHANGE
    return {
        "controlAll": _channel(control, "all", broadcasts, "Commands to every worker."),
        "controlScenario": _channel(
            control, "scenario.{scenario}", broadcasts, "Commands to every worker of a scenario.", _SCENARIO
        ),
        "controlWorker": _channel(control, "worker.{worker_id}", broadcasts, "Commands to one worker.", _WORKER),
        "controlJobs": _channel(
            control, "job.{scenario}", jobs, "Commands that exactly one worker of a scenario carries out.", _SCENARIO
        ),
        "replies": {
            "address": None,
            "description": "The reply_to of a command: the broker's direct reply-to, or a queue swarm.reply.<name>.",
            "messages": {"reply": _ref("components/messages/reply")},
        },
    }


def _channel(
    exchange: str, address: str, messages: list[str], description: str, parameters: Tree | None = None
) -> Tree:
    channel: Tree = {"address": address, "description": description}
    if parameters:
        channel["parameters"] = parameters
    channel["messages"] = {name: _ref(f"components/messages/{name}") for name in messages}
    topic = {"name": exchange, "type": "topic", "durable": True, "autoDelete": False}
    channel["bindings"] = {"amqp": {"is": "routingKey", "exchange": topic, "bindingVersion": _BINDING}}
    return channel


def _operations() -> Tree:
    operations: Tree = {
        "receiveRecords": {
            "action": "receive",
            "channel": _ref("channels/records"),
            "summary": "Stores every record exactly once in effect, then acknowledges.",
            "messages": [_ref("channels/records/messages/recordsBatch")],
            "bindings": {"amqp": {"ack": True, "bindingVersion": _BINDING}},
        }
    }
    for type_ in EVENTS:
        operations[f"send{_name(type_).capitalize()}"] = {
            "action": "send",
            "channel": _ref(f"channels/{_name(type_)}"),
            "summary": "At least once, in order, always with the same id.",
            "messages": [_ref(f"channels/{_name(type_)}/messages/{_name(type_)}")],
            "bindings": {
                "amqp": {"cc": [type_], "deliveryMode": 2, "mandatory": True, "bindingVersion": _BINDING},
            },
        }
    for channel, road in (
        ("controlAll", "broadcast"),
        ("controlScenario", "broadcast"),
        ("controlWorker", "broadcast"),
        ("controlJobs", "job"),
    ):
        operations[f"receive{channel[0].upper()}{channel[1:]}"] = {
            "action": "receive",
            "channel": _ref(f"channels/{channel}"),
            "messages": [_ref(f"channels/{channel}/messages/{name}") for name in _commands(road)],
            "reply": {
                "address": {"location": "$message.header#/replyTo", "description": "The AMQP property reply_to."},
                "channel": _ref("channels/replies"),
                "messages": [_ref("channels/replies/messages/reply")],
            },
        }
    return operations


def _messages() -> Tree:
    messages: Tree = {
        "recordsBatch": _message(
            "records",
            "records.v1.schema.json",
            "A batch of records; content_encoding absent or gzip. Set user_id to the connection's user: workers may be "
            "told to take records of known users only.",
        )
    }
    for type_, data in EVENTS.items():
        messages[_name(type_)] = _message(type_, f"{type_}.v1.schema.json", str(data.__doc__), CONTENT_TYPE)
        messages[_name(type_)]["bindings"] = {"amqp": {"messageType": type_, "bindingVersion": _BINDING}}
    headers = {
        KEY_HEADER: {"type": "string", "description": "Which control key signed."},
        SIGNATURE_HEADER: {"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "HMAC-SHA256, hexadecimal."},
    }
    for name, kind in COMMANDS.items():
        message = _message(name, f"command.{name}.v1.schema.json", str(kind.args.__doc__))
        message["headers"] = {
            "type": "object",
            "description": "Where a control key is set, commands are signed.",
            "properties": headers,
        }
        messages[_command(name)] = message
    messages["reply"] = _message("reply", "reply.v1.schema.json", "What came of a command so far.")
    return messages


def _message(name: str, schema: str, summary: str, content_type: str = "application/json") -> Tree:
    return {"name": name, "summary": summary, "contentType": content_type, "payload": {"$ref": f"./{schema}"}}


def _commands(road: str) -> list[str]:
    return [_command(name) for name, kind in COMMANDS.items() if kind.road == road]


def _command(name: str) -> str:
    """`train-now` as a key: `commandTrainNow`."""
    return "command" + name.title().replace("-", "")


def _name(type_: str) -> str:
    """`learning.rolled_back` as a key: `rolled_back`."""
    return type_.rpartition(".")[2]


def _ref(place: str) -> Tree:
    return {"$ref": f"#/{place}"}
