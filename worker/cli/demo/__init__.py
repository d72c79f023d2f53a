"""`swarm-worker demo`: the main job with real agents, from nothing to a model that makes them better."""

from __future__ import annotations

import click


@click.command()
def demo() -> None:
    """Let agents play, learn from them, and show what the model changed."""
