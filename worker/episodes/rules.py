"""What a scenario means by terminal, system and available actions, and how its examples address the model."""

from __future__ import annotations

from msgspec import Struct

TERMINAL_ACTIONS = frozenset({"done", "finish", "submit", "complete", "give_up"})
#: Pseudo-actions by prefix: LLM calls, learning events and the manager's own (domain decision j).
SYSTEM_PREFIXES = ("llm_", "learning_", "manager_", "system_")


class Rules(Struct, frozen=True, kw_only=True):
    """One scenario's rules; names are compared in lower case."""

    terminal_actions: frozenset[str] = TERMINAL_ACTIONS
    system_events: frozenset[str] = frozenset()
    available_actions: tuple[str, ...] = ()
    system_prompt: str | None = None
    #: Share of tasks and sessions held out for the gate, chosen by a hash of their id.
    holdout: float = 0.2

    def is_terminal(self, action: str) -> bool:
        """Whether this action ends a sequence."""
        return action.lower() in self.terminal_actions

    def is_system(self, action: str) -> bool:
        """Whether this is no decision of a worker and must not count as one."""
        name = action.lower()
        return name.startswith(SYSTEM_PREFIXES) or name in self.system_events
