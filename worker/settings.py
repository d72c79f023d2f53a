"""Every setting, read once at the edge: flags, then SWARM_... variables, then .env, then the secrets directory."""

from __future__ import annotations

import difflib
import json
import os
import re
import socket
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from worker import crash
from worker.episodes.rules import TERMINAL_ACTIONS
from worker.errors import ConfigurationError
from worker.hosts import is_loopback
from worker.lora_settings import LoraSettings
from worker.setting_types import CommaList, Duration, PositiveDuration
from worker.wire.commands import COMMANDS
from worker.wire.names import RESERVED_SCENARIO, SLUG

_PRODUCER_PATTERN = re.compile(r"[A-Za-z0-9_*-]{1,64}")


def _parse_object(value: object) -> object:
    # Parsed here rather than by pydantic-settings, which knows JSON in the environment only: as a flag it was refused,
    # and text that is no JSON ended in a traceback.
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError(f'this is no JSON object ({error}); write it like {{"checkout": {{...}}}}') from None
    return value


def default_data_dir() -> Path:
    """`$XDG_DATA_HOME/swarm-worker`, like the original's `~/.local/share/swarm-engine/learning`."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "swarm-worker"


def default_worker_id() -> str:
    """The host's name, made a slug."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())[:48].strip("-_") or "worker"


CrashPoint = Annotated[str, AfterValidator(crash.checked)]

#: The built-in learn models. The first one that runs says how an episode ended, to the quality and drift triggers.
LEARN_MODELS = ("worker_decision_sequence", "worker_task", "dependency_graph", "dpo")


class ScenarioOptions(BaseModel):
    """What one scenario may set for itself; absent fields follow the general settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trigger: str | None = None
    apply_mode: Literal["manual", "auto"] | None = None
    learn_models: tuple[str, ...] | None = None
    terminal_actions: tuple[str, ...] | None = None
    system_events: tuple[str, ...] | None = None
    available_actions: tuple[str, ...] | None = None
    system_prompt: str | None = None


class GeneralSettings(BaseSettings):
    """All but those of LoRA, in the order in which they are listed. The description of each is its help text."""

    model_config = SettingsConfigDict(env_prefix="SWARM_", env_file=".env", extra="ignore", frozen=True)

    # -- where things are
    scenarios: CommaList = Field((), description="scenarios to serve, comma-separated")
    amqp_url: SecretStr = Field(
        SecretStr("amqp://guest:guest@localhost:5672/"), description="RabbitMQ, amqp:// or amqps://"
    )
    amqp_ca_file: Path | None = Field(
        None, description="CA certificates to trust instead of the system's, for amqps://"
    )
    amqp_cert_file: Path | None = Field(
        None, description="our own certificate (PEM), for a broker that asks for one; only for amqps://"
    )
    amqp_key_file: Path | None = Field(None, description="the key of SWARM_AMQP_CERT_FILE; default: in the same file")
    amqp_allow_plaintext: bool = Field(default=False, description="allow amqp:// to a host that is not this machine")
    topology: Literal["auto", "passive"] = Field(
        "auto", description="auto declares broker objects; passive only checks them"
    )
    data_dir: Path = Field(default_factory=default_data_dir, description="models, runs and, by default, the store")
    store_url: str | None = Field(None, description="sqlite:///path; default <data_dir>/swarm.db")
    worker_id: str = Field(default_factory=default_worker_id, description="this worker's name, stable across restarts")
    scenario_options: Annotated[dict[str, ScenarioOptions], NoDecode, BeforeValidator(_parse_object)] = Field(
        {}, description='JSON, per scenario: {"checkout": {"trigger": "count(20)"}}'
    )

    # -- who may do what, as far as the broker vouches for its users
    producers: Annotated[dict[str, tuple[str, ...]], NoDecode, BeforeValidator(_parse_object)] = Field(
        {},
        description="JSON, broker users and the producer ids that are theirs, * for any text: "
        '{"node-checkout": ["checkout-*"]}; records of others are quarantined. Default: anybody publishes',
    )
    operators: CommaList = Field((), description="broker users whose commands are obeyed; default: anybody's")

    # -- ingest
    prefetch: int = Field(
        192, ge=1, le=2000, description="unacknowledged messages per scenario (quorum queues cap at 2000)"
    )
    batch_messages: int = Field(64, ge=1, le=2000, description="most messages in one transaction")
    batch_bytes: int = Field(4_000_000, ge=1, description="most bytes in one transaction")
    batch_age: Duration = Field(0.02, description="longest a message waits for company")
    quarantine_bytes: int = Field(
        256_000_000,
        ge=1_000_000,
        description="most bytes in quarantine; the oldest beyond move to files in <data_dir>/quarantine, as many again",
    )

    # -- episodes
    learn_models: CommaList = Field(
        LEARN_MODELS, description="learn models to run; triggers count the episodes of the first"
    )
    idle_timeout: PositiveDuration = Field(900.0, description="a task without records this long is closed")
    terminal_actions: CommaList = Field(
        tuple(sorted(TERMINAL_ACTIONS)), description="actions that end a sequence, in any case"
    )
    system_events: CommaList = Field((), description="further pseudo-actions that are no worker decisions")

    # -- trigger and runs
    check_interval: PositiveDuration = Field(10.0, description="how often triggers are evaluated")
    trigger: str = Field(
        "count(100) or every(1h)",
        description="when to train: count(N), N new episodes of the first learn model; every(1h), "
        "quality(0.6), drift, manual, never, always, and, or, ( )",
    )
    processor_mode: str = Field("offline", description="what to train: offline, lora or full, which is both")
    max_sessions: int = Field(20, ge=1, description="newest sessions an analysis reads")
    holdout: float = Field(0.2, gt=0, lt=1, description="share of episodes held out for the gate")
    producer_share: float = Field(
        0.33,
        gt=0,
        le=1,
        description="most that one producer brings of the episodes a training learns from, "
        "1: no limit; 100 episodes always count, and fewer producers than 1 / share are not limited",
    )
    gate_strategy: Literal["no_regression", "improvement", "absolute"] = Field(
        "no_regression", description="what a model must reach on sessions held out"
    )
    gate_threshold: float | None = Field(
        None, gt=0, description="improvement: factor, default 1.1; absolute: rate, default 0.8"
    )
    training_timeout: PositiveDuration = Field(1800.0, description="longest a training may take")
    training_memory_mb: int = Field(2048, ge=128, description="address space of the training process")
    training_cooldown: Duration = Field(0.0, description="shortest time between two automatic runs")
    training_backoff: PositiveDuration = Field(
        30.0, description="wait after the first failed run; doubles up to an hour"
    )

    # -- apply
    apply_mode: Literal["manual", "auto"] = Field("manual", description="auto applies what the gate blesses")
    applicator: Literal["files", "webhook", "noop"] = Field(
        "files", description="how a model reaches those who use it; noop is for tests"
    )
    webhook_url: SecretStr | None = Field(None, description="where the webhook applicator posts")
    webhook_allow_plaintext: bool = Field(
        default=False, description="allow http:// to a webhook that is not on this machine"
    )
    webhook_key: SecretStr | None = Field(None, description="HMAC key that signs what the webhook applicator posts")
    max_history: int = Field(5, ge=1, description="models kept for rollback")

    # -- control, health, logs
    control_key: SecretStr | None = Field(
        None, description="HMAC key as id:secret; with it unsigned commands are refused"
    )
    disabled_commands: CommaList = Field(
        (), description="commands that this worker never obeys, such as shutdown,replay-quarantine"
    )
    http_host: str = Field("127.0.0.1", description="health and metrics listen here")
    http_port: int = Field(9108, ge=0, le=65535, description="0 picks a free port")
    start_timeout: PositiveDuration = Field(30.0, description="longest wait for the broker at the start")
    shutdown_grace: PositiveDuration = Field(25.0, description="longest a shutdown may take")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal, else json")

    # -- tests
    crash_at: CrashPoint | None = Field(
        None, description="for tests: kill -9 itself at this point, such as post_commit:3"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for scenario in (*self.scenarios, *self.scenario_options):
            if not SLUG.fullmatch(scenario):
                raise ValueError(
                    f"SWARM_SCENARIOS: {scenario!r} is no scenario name; use letters, digits, - and _, at most 64"
                )
        if not SLUG.fullmatch(self.worker_id):
            raise ValueError(
                f"SWARM_WORKER_ID: {self.worker_id!r} is no name; use letters, digits, - and _, at most 64"
            )
        twice = [scenario for scenario, times in Counter(self.scenarios).items() if times > 1]
        if twice:
            raise ValueError(f"SWARM_SCENARIOS: {twice[0]!r} stands there twice")
        named = [("SWARM_LEARN_MODELS", self.learn_models)]
        named += [
            (f"SWARM_SCENARIO_OPTIONS, {scenario}, learn_models", own.learn_models or ())
            for scenario, own in self.scenario_options.items()
        ]
        for place, names in named:
            for name in names:
                if name not in LEARN_MODELS:
                    raise ValueError(f"{place}: {name!r} is unknown; choose from {', '.join(LEARN_MODELS)}")
        for name in self.disabled_commands:
            if name not in COMMANDS:
                raise ValueError(f"SWARM_DISABLED_COMMANDS: {name!r} is no command; choose from {', '.join(COMMANDS)}")
        return self

    @model_validator(mode="after")
    def _nobody_is_mistaken(self) -> Self:
        if RESERVED_SCENARIO in self.scenarios:
            raise ValueError(
                f"SWARM_SCENARIOS: {RESERVED_SCENARIO!r} is reserved, since its routing keys would be those of other "
                "scenarios' queues; choose another name"
            )
        for user, patterns in self.producers.items():
            for pattern in patterns or ("",):
                if not _PRODUCER_PATTERN.fullmatch(pattern):
                    raise ValueError(
                        f"SWARM_PRODUCERS, {user}: {pattern!r} is no producer id; use letters, digits, - and _, "
                        "and * for any text"
                    )
        if "producers" in self.model_fields_set and not self.producers:
            raise ValueError("SWARM_PRODUCERS: it names nobody; leave it unset to take records of anybody")
        return self

    @model_validator(mode="after")
    def _safe_to_reach(self) -> Self:
        if self.amqp_key_file is not None and self.amqp_cert_file is None:
            raise ValueError("SWARM_AMQP_KEY_FILE: a key needs its certificate; set SWARM_AMQP_CERT_FILE")
        if self.applicator == "webhook" and self.webhook_url is None:
            raise ValueError("SWARM_APPLICATOR: webhook needs a URL; set SWARM_WEBHOOK_URL")
        if self.webhook_url is not None:
            self._check_webhook(self.webhook_url.get_secret_value())
        return self

    def _check_webhook(self, url: str) -> None:
        try:
            parts = urlsplit(url)
        except ValueError:  # what Python says of it may hold the password
            raise ValueError("SWARM_WEBHOOK_URL: it is no URL; write [ and ] in a password as %5B and %5D") from None
        if parts.scheme not in ("https", "http") or not parts.hostname:
            raise ValueError("SWARM_WEBHOOK_URL: it must begin with https:// or http:// and a host")
        if parts.scheme == "http" and not self.webhook_allow_plaintext and not is_loopback(parts.hostname):
            raise ValueError(
                f"SWARM_WEBHOOK_URL: http:// would send models to {parts.hostname} unencrypted; use https://, "
                "or set SWARM_WEBHOOK_ALLOW_PLAINTEXT=true on a network you trust"
            )

    @property
    def effective_store_url(self) -> str:
        """`store_url`, or the SQLite file in the data directory."""
        # A URL knows only absolute paths, and ends at a "?" or "#" of a directory's name unless it is quoted.
        return self.store_url or f"sqlite://{quote(str((self.data_dir / 'swarm.db').absolute()))}"


class Settings(LoraSettings, GeneralSettings):
    """All settings; pydantic lists those of the last base class first."""


def load_settings(**flags: Any) -> Settings:
    """Settings from flags and surroundings; raises `ConfigurationError` with a line per mistake.

    The secrets directory (a file per setting, named like its variable) is `SWARM_SECRETS_DIR`, else /run/secrets.
    """
    secrets_dir = Path(os.environ.get("SWARM_SECRETS_DIR", "/run/secrets"))
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        # mypy takes the class for a plain dataclass; pydantic-settings documents the argument.
        return Settings(_secrets_dir=secrets_dir if secrets_dir.is_dir() else None, **given)  # type: ignore[call-arg]
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            name, *inside = map(str, problem["loc"] or ("",))
            place = ", ".join([f"SWARM_{name.upper()}", *inside])
            text = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "literal_error":
                choices = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
                text = f"{problem['input']!r} is unknown; choose from {', '.join(choices)}"
            if problem["type"] == "tuple_type":
                text = 'write a list, such as ["one", "two"]'
            # What concerns more than one setting names them itself.
            lines.append(f"  {place}: {text}" if name else f"  {text}")
        raise ConfigurationError("these settings are wrong:\n" + "\n".join(lines)) from None


def unknown_variables() -> dict[str, str | None]:
    """SWARM_... variables of the environment that are no settings, each with the one that may be meant."""
    known = {f"SWARM_{name.upper()}" for name in Settings.model_fields} | {"SWARM_SECRETS_DIR"}
    given = sorted(name for name in os.environ if name.startswith("SWARM_") and name not in known)
    return {name: next(iter(difflib.get_close_matches(name, known, 1)), None) for name in given}
