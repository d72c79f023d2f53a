"""For swarm nodes and services: publish records, fetch models, follow learning events.

The broker's side is imported only by `connect` and `sync`, so events and models can be used without a connection.
"""
