"""Which port each program listens on, and who holds one that is taken."""

import socket

PORTS = {
    "redis": 6379,
    "retriever": 8001,
    "reward": 8002,
    "rollout": 8003,
    "trainer": 8004,
    "evaluator": 8005,
}
ALONGSIDE_PORTS = {"rollout-evaluation": 8006, "engine-evaluation": 8009}
"""Of the rollout service and the engine that evaluate given versions while training goes on."""
FIRST_ENGINE_PORT = 8010


def ports_of_programs(offset: int, *, num_engines: int = 1, alongside: bool = False) -> dict[str, int]:
    """By program; one that only works off a queue has none."""
    engines = {f"engine-{replica}": FIRST_ENGINE_PORT + replica for replica in range(num_engines)}
    ports = PORTS | engines | (ALONGSIDE_PORTS if alongside else {})
    return {name: port + offset for name, port in ports.items()}


def is_free(port: int) -> bool:
    """Whether a service could listen on it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def holder(port: int) -> str:
    """Who listens on it, as far as the system tells."""
    import psutil

    for connection in psutil.net_connections(kind="tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            process = psutil.Process(connection.pid)
            return f"process {process.pid} ({' '.join(process.cmdline())[:80]})"
    return "another process"
