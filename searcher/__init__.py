"""What the services share: the contracts of the hops, the language of the task, clients, and how a service runs."""

__version__ = "0.1.0"
