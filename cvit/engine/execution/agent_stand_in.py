"""Stands in for one of Ray's two agents, without which no Ray starts: names the ports of its servers, although there
are none, and lives as long as the process that has started it.

    python -I -S agent_stand_in.py SESSION_FOLDER NODE_ID FILE...

Of the dashboard's agent, the answer is that of an installation without the dashboard's libraries. The agent for
environments of tasks has a port, at which nobody answers: a sweep's tasks have none. This program imports nothing but
the standard library, so that it costs nothing; the agents took 0.5 to 0.8 s of the processor each.
"""

import os
import socket
import sys
import time

OF_DASHBOARD = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
"""The files in which Ray looks for the ports of the dashboard's agent."""
OF_ENVIRONMENTS = ("runtime_env_agent_port",)
"""The file in which it looks for the port of the agent for environments."""
NO_SERVER = -1
LOOK_INTERVAL_S = 1.0


def main(session_folder: str, node_id: str, *names: str) -> None:
    """Writes the files that Ray waits for, and ends with its parent."""
    parent = os.getppid()
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # it does not listen: whoever asks is refused at once
        for name in names:
            path = os.path.join(session_folder, f"{name}_{node_id}")
            with open(f"{path}.partial", "w") as file:
                file.write(str(held.getsockname()[1] if name in OF_ENVIRONMENTS else NO_SERVER))
            os.rename(f"{path}.partial", path)
        while os.getppid() == parent:
            time.sleep(LOOK_INTERVAL_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
