"""A Ray cluster of two nodes with one CPU each on this machine, in a process of its own.

Prints the address; a line on standard input removes the second node, its end removes all.
"""

import os
import socket
import sys
from contextlib import ExitStack

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
PORTS = ("metrics_agent_port", "runtime_env_agent_port", "dashboard_agent_listen_port", "metrics_export_port")


def node() -> dict[str, int]:
    """The parameters of a node. With free ports named, none is waited for, which a busy machine is too slow for."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in PORTS]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = {name: one.getsockname()[1] for name, one in zip(PORTS, sockets, strict=True)}
    return ports | {"num_cpus": 1, "object_store_memory": 80_000_000}


def main() -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=node() | {"include_dashboard": False})
    second = cluster.add_node(**node())
    print(cluster.address, flush=True)
    for _ in sys.stdin:
        cluster.remove_node(second, allow_graceful=False)
        print("removed", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
