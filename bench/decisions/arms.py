# SPDX-License-Identifier: BSD-3-Clause
"""What is compared: path managers, each with the daemons that run it."""

from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from mptcpd_ebpf.core.roles import Preset

PLUGINS = Path(__file__).parent / "plugins"

Configuration = dict[str, Any]
"""The daemon's YAML document."""


class Arm(Struct, frozen=True, kw_only=True):
    """One way to manage the paths.  A daemon without a plugin only observes."""

    joins: Literal["none", "kernel", "daemon"] = "daemon"
    """Who adds the paths to a connection; with none it stays on the path on which it starts."""
    client: Configuration = {}
    server: Configuration | None = None
    """None: no daemon on the server."""
    goodput: bool = True
    """Whether the targets of goodput are for this arm: a preset that keeps paths for standby gives
    capacity away on purpose."""


def _adaptive(preset: Preset = Preset.AUTO) -> Configuration:
    return {"path_manager": "adaptive", "plugins": {"adaptive": {"preset": preset.value}}}


ARMS: dict[str, Arm] = {
    # Each path in turn; the report takes the best one.
    "alone": Arm(joins="none"),
    "kernel": Arm(joins="kernel"),
    "score": Arm(client={"path_manager": "score", "plugin_dir": str(PLUGINS)}),
    "adaptive": Arm(client=_adaptive()),
    "adaptive-both": Arm(client=_adaptive(), server=_adaptive()),
    "interactive": Arm(client=_adaptive(Preset.INTERACTIVE), goodput=False),
    "bulk": Arm(client=_adaptive(Preset.BULK)),
    "handover": Arm(client=_adaptive(Preset.HANDOVER), goodput=False),
    "backup": Arm(client=_adaptive(Preset.BACKUP), goodput=False),
}
QUICK_ARMS = ["alone", "kernel", "adaptive"]
BASELINES = ("alone", "kernel")
