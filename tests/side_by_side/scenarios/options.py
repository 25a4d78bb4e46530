# SPDX-License-Identifier: BSD-3-Clause
"""mptcpd's command line: every option, in every spelling."""

from tests.side_by_side.scenario import Fault, Scenario
from tests.side_by_side.scenarios.steps import ONE, A

SIGNAL = ("10.0.1.1 signal",)
THEIR_FOLDER = "/usr/lib/x86_64-linux-gnu/mptcpd"


def accepted(*arguments: str, table: tuple[str, ...] = ONE) -> Scenario:
    """Both accept it with the same meaning."""
    return Scenario(name=" ".join(arguments), arguments=arguments, before=[A], table=table)


def ended(*arguments: str, exit_code: int = 0) -> Scenario:
    """Both exit at once with the same code."""
    return Scenario(name=" ".join(arguments), arguments=arguments, before=[A], exit_code=exit_code)


REFUSED_LIMITS = (2, 0)
"""Those of a new namespace: nothing was changed."""

OPTIONS = [
    accepted("--addr-flags=signal", table=SIGNAL),
    accepted("--addr-flags=subflow,backup", table=("10.0.1.1 subflow backup",)),
    accepted("--addr-flags=subflow,fullmesh", table=("10.0.1.1 subflow fullmesh",)),
    accepted("--addr-flags=subflow,signal", table=("10.0.1.1 subflow signal",)),
    accepted("--addr-flags=signal", "--addr-flags=subflow"),
    accepted("--addr-flags", "signal", "--log", "stderr", table=SIGNAL),
    accepted("--path-manager=addr_adv"),
    accepted("--path-manager", "addr_adv"),
    accepted("--load-plugins=addr_adv"),
    accepted("--plugin-dir", THEIR_FOLDER),
    accepted("-d"),
    accepted("--debug"),
    accepted("-l", "null"),
    accepted("-lnull"),
    accepted("-dlnull"),
    accepted("--log=null"),
    accepted("--addr=signal", table=SIGNAL),
    accepted("--path=addr_adv"),
    accepted("--a=signal", table=SIGNAL),
    accepted("--n=existing,skip_link_local,skip_loopback"),
    accepted("--d"),
    ended("--h"),
    ended("--u"),
    ended("--v"),
    ended("--l=null", exit_code=64),
    ended("--p=addr_adv", exit_code=64),
    ended("--debug=1", exit_code=64),
    ended("--help"),
    ended("-?"),
    ended("--usage"),
    ended("--version"),
    ended("-V"),
    ended("--nonsense", exit_code=64),
    ended("nonsense", exit_code=64),
    ended("--log=nowhere", exit_code=64),
    ended("--log=nowhere", "--log=null", exit_code=64),
    ended("--path-manager=", exit_code=64),
    ended("--addr-flags", exit_code=64),
    Scenario(
        name="--addr-flags=signal,fullmesh",
        arguments=("--addr-flags=signal,fullmesh",),
        before=[A],
        exit_code=64,
        limits=REFUSED_LIMITS,
        theirs={"exit_code": 0, "unresponsive": True, "limits": (3, 0)},
        better="contradictory flags are refused at start, not by the kernel for each address",
    ),
    Scenario(
        name="--addr-flags=subflow,fast",
        arguments=("--addr-flags=subflow,fast",),
        before=[A],
        exit_code=64,
        limits=REFUSED_LIMITS,
        theirs={"exit_code": 0, "table": ONE, "limits": (4, 4)},
        better="a misspelt name is refused, with the valid names",
    ),
    Scenario(
        name="--notify-flags=existing,loud",
        arguments=("--notify-flags=existing,loud",),
        before=[A],
        exit_code=64,
        limits=REFUSED_LIMITS,
        theirs={"exit_code": 0, "table": ONE, "limits": (4, 4)},
        better="a misspelt name is refused, with the valid names",
    ),
    Scenario(
        name="--path-manager=nonsense",
        faults=(Fault.REPLACED,),
        arguments=("--path-manager=nonsense",),
        before=[A],
        exit_code=78,
        limits=REFUSED_LIMITS,
        theirs={"exit_code": 0, "table": ONE, "limits": (4, 4)},
        better="an unknown plugin is an error; no other is loaded in its place",
    ),
    Scenario(
        name="--load-plugins=nonsense",
        faults=(Fault.REPLACED,),
        arguments=("--load-plugins=nonsense",),
        before=[A],
        exit_code=78,
        theirs={"exit_code": 1},
        better="a separate exit code for a wrong configuration",
    ),
    Scenario(
        name="--plugin-dir=/nonexistent",
        arguments=("--plugin-dir=/nonexistent",),
        before=[A],
        exit_code=78,
        theirs={"exit_code": 1},
        better="a separate exit code for a wrong configuration",
    ),
    Scenario(
        name="--load-plugins=addr_adv,sspi",
        arguments=("--load-plugins=addr_adv,sspi",),
        before=[A],
        exit_code=78,
        limits=REFUSED_LIMITS,
        theirs={"exit_code": 0, "table": ONE, "limits": (4, 4)},
        better="sspi needs the userspace path manager and addr_adv the kernel's: loaded "
        "together, one of them would serve nothing",
    ),
    Scenario(
        name="--load-plugins=sspi beside path-manager=addr_adv in the file",
        faults=(Fault.REPLACED,),
        arguments=("--load-plugins=sspi",),
        before=[A],
        exit_code=78,
        theirs={"exit_code": 0, "unresponsive": True},
        better="a path manager that is named is not replaced silently",
    ),
]
