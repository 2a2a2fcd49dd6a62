"""Stands in for Ray's dashboard agent, without which no Ray starts: says that its servers do not exist, as the agent of
an installation without the dashboard's libraries does, and lives as long as the process that has started it.

    python -I -S agent_stand_in.py SESSION_FOLDER NODE_ID

It imports nothing but the standard library, so that it costs nothing.
"""

import os
import sys
import time

PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
"""The files in which Ray looks for the ports of the agent."""
OTHER_AGENT = "runtime_env_agent_port"
"""The file of Ray's other agent, for which Ray waits after this one, and gives up after 15 s each."""
PATIENCE_S = 12.0
"""The time that the other agent gets in addition: on a machine that is very busy, it starts in more than 15 s."""
NO_SERVER = "-1"
LOOK_INTERVAL_S, SHORT_INTERVAL_S = 1.0, 0.02


def main(session_folder: str, node_id: str) -> None:
    """Writes the files that Ray waits for, and ends with its parent."""
    parent, deadline = os.getppid(), time.monotonic() + PATIENCE_S
    while not os.path.exists(os.path.join(session_folder, f"{OTHER_AGENT}_{node_id}")) and time.monotonic() < deadline:
        time.sleep(SHORT_INTERVAL_S)
    for name in PORTS:
        path = os.path.join(session_folder, f"{name}_{node_id}")
        with open(f"{path}.partial", "w") as file:
            file.write(NO_SERVER)
        os.rename(f"{path}.partial", path)
    while os.getppid() == parent:
        time.sleep(LOOK_INTERVAL_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
