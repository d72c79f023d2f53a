"""The swarm learning worker: records in over RabbitMQ, models and learning events out."""

__version__ = "0.1.0"
