"""Free ports on the loopback interface."""

import contextlib
import socket
from pathlib import Path


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on this port now."""
    with _socket_for(host) as probe, contextlib.suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return True
    return False


def find_free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports that the kernel says are free, all different."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(_socket_for(host)) for _ in range(count)]
        for probe in probes:
            probe.bind((host, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def remembered_port(path: Path) -> int:
    """The port noted in this file, if it is still free; otherwise a new one, which is noted."""
    with contextlib.suppress(OSError, ValueError):
        port = int(path.read_text())
        if is_free(port):
            return port
    port = find_free_ports(1)[0]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(f"{port}\n")
    return port


def _socket_for(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
