# SPDX-License-Identifier: BSD-3-Clause
"""The service under systemd: it is watched, reloads and stops, and strangers cannot stop it."""

from tests.booted.system import System

INSTALL = "dpkg -i /root/mptcpd-ebpf.deb\n"

# sum() over integers checks no signal until it returns, here after some hours.
BLOCKS = """
from pathlib import Path

from mptcpd_ebpf.plugin import Plugin

MARKER = Path("/run/mptcpd-ebpf/blocked")


class Blocks(Plugin):
    name = "blocks"

    def new_local_address(self, ctx, address):
        if not MARKER.exists():
            MARKER.touch()
            sum(range(10**13))
"""

WATCHED_CLOSELY = """
[Service]
WatchdogSec=2
"""

STRANGER = """
import glob, os, socket, time, urllib.request
for path in glob.glob("/run/mptcpd-ebpf/*"):
    for attempt in (
        lambda: os.open(path, os.O_RDONLY),
        lambda: os.unlink(path),
        lambda: socket.socket(socket.AF_UNIX).connect(path),
    ):
        try:
            attempt()
        except OSError as error:
            assert isinstance(error, PermissionError | ConnectionRefusedError), error
        else:
            raise SystemExit(f"allowed: {path}")
socket.socket(socket.AF_UNIX).bind("\\0mptcpd-ebpf/lock")
idle = [socket.create_connection(("127.0.0.1", 9464)) for _ in range(70)]
text = urllib.request.urlopen("http://127.0.0.1:9464/metrics", timeout=5).read()
assert b"mptcpd_ebpf_connections" in text
open("/tmp/ready", "w").close()
time.sleep(1000)
"""


def test_it_runs_as_its_own_user_with_what_it_needs_and_no_more(with_package: System) -> None:
    said = with_package.run(
        INSTALL
        + """
        pid=$(property MainPID)
        [ "$(stat -c %U "/proc/$pid")" = mptcpd-ebpf ]
        grep -E '^(CapPrm|CapEff|NoNewPrivs|Seccomp):' "/proc/$pid/status"
        stat -c '%U %a' /run/mptcpd-ebpf /run/mptcpd-ebpf/*.lock /run/mptcpd-ebpf/*.sock
        systemd-analyze security mptcpd-ebpf | tail -1
        # It finds the owner of another user's connection that was there before it.
        ip link set lo up
        systemctl stop mptcpd-ebpf
        python3 -I /root/talk.py 127.0.0.1 127.0.0.2 &
        eventually test -s /root/answers
        systemctl start mptcpd-ebpf
        sed -i 's/^rules: .*/rules: [{command: "python*", plugin: adaptive}]/' /etc/mptcpd-ebpf.yaml
        mptcpd-ebpf reload
        known() { mptcpd-ebpf ls | grep 'python3\\['; }
        eventually known
        """
    )
    assert "CapPrm:\t0000000000083400\n" in said
    assert "CapEff:\t0000000000083400\n" in said
    assert "NoNewPrivs:\t1\n" in said
    assert "Seccomp:\t2\n" in said
    assert said.count("mptcpd-ebpf 755\n") == 1
    assert said.count("mptcpd-ebpf 600\n") == 2
    (exposure,) = (line for line in said.splitlines() if "Overall exposure level" in line)
    assert float(exposure.partition("service: ")[2].split()[0]) <= 2.0


def test_a_blocked_loop_is_restarted_by_the_watchdog(with_package: System) -> None:
    with_package.write("etc/systemd/system/mptcpd-ebpf.service.d/watch.conf", WATCHED_CLOSELY)
    with_package.write("etc/mptcpd-plugins/blocks.py", BLOCKS)
    with_package.run(
        INSTALL
        + """
        printf 'plugin_dir: /etc/mptcpd-plugins\\npath_manager: blocks\\n' > /etc/mptcpd-ebpf.yaml
        mptcpd-ebpf reload
        before=$(property MainPID)
        ip link set lo up
        ip link add d1 type veth peer name p1
        ip link set p1 up
        ip link set d1 up
        ip address add 10.0.1.1/24 dev d1
        eventually test -e /run/mptcpd-ebpf/blocked
        restarted() { [ "$(property NRestarts)" -ge 1 ] && state active; }
        eventually restarted
        [ "$(property MainPID)" != "$before" ]
        journalctl --no-pager -u mptcpd-ebpf | grep 'Watchdog timeout'
        journalctl --no-pager -u mptcpd-ebpf -p info | grep 'INFO ready'
        if journalctl --no-pager -u mptcpd-ebpf -p warning | grep INFO; then exit 1; fi
        mptcpd-ebpf status | grep blocks
        """
    )


def test_reload_stop_and_kill(with_package: System) -> None:
    with_package.run(
        INSTALL
        + """
        pid=$(property MainPID)
        echo 'path_manager: adaptive' > /etc/mptcpd-ebpf.yaml
        systemctl reload mptcpd-ebpf
        eventually path_manager userspace
        [ "$(property MainPID)" = "$pid" ]
        # A configuration that others can write changes nothing.
        chmod 666 /etc/mptcpd-ebpf.yaml
        if mptcpd-ebpf reload; then exit 1; fi
        path_manager userspace
        chmod 644 /etc/mptcpd-ebpf.yaml
        # After kill -9 it comes back, and what it had set is restored when it stops.
        kill -9 "$pid"
        again() { [ "$(property NRestarts)" = 1 ] && state active; }
        eventually again
        path_manager userspace
        systemctl stop mptcpd-ebpf
        [ "$(property Result)" = success ]
        path_manager kernel
        [ -z "$(ls /run/mptcpd-ebpf)" ]
        # A wrong configuration is not tried again and again.
        echo 'path_manger: adaptive' > /etc/mptcpd-ebpf.yaml
        if systemctl start mptcpd-ebpf; then exit 1; fi
        [ "$(property ExecMainStatus)" = 78 ]
        [ "$(property NRestarts)" = 0 ]
        """
    )


SUBSCRIBED = "from mptcpd_ebpf.kernel.others import others; print(*others(), sep='\\n')"


def test_the_subscription_outlives_a_killed_daemon(with_package: System) -> None:
    late = "[Service]\nRestartSec=3\n"
    with_package.write("etc/systemd/system/mptcpd-ebpf.service.d/late.conf", late)
    with_package.run(
        INSTALL
        + f"""
        subscribed() {{
            /usr/lib/mptcpd-ebpf/bin/python -I -c "{SUBSCRIBED}" | grep 'subscribed=True'
        }}
        [ "$(property NFileDescriptorStore)" = 1 ]
        kill -9 "$(property MainPID)"
        waits() {{ [ "$(property SubState)" = auto-restart ]; }}
        eventually waits
        subscribed | grep "comm='systemd'"
        eventually state active
        [ "$(property NFileDescriptorStore)" = 1 ]
        journalctl --no-pager -u mptcpd-ebpf | grep 'was kept since the former daemon'
        # Nobody else is subscribed: the daemon does not take systemd for another manager.
        if journalctl --no-pager -u mptcpd-ebpf | grep 'manages or monitors'; then exit 1; fi
        systemctl restart mptcpd-ebpf
        [ "$(journalctl --no-pager -u mptcpd-ebpf | grep -c 'was kept since')" = 2 ]
        systemctl stop mptcpd-ebpf
        if subscribed; then exit 1; fi
        """
    )


def test_strangers_can_neither_stop_it_nor_keep_it_from_starting(with_package: System) -> None:
    with_package.write("root/stranger.py", STRANGER)
    with_package.run(
        INSTALL
        + """
        ip link set lo up
        printf 'metrics:\\n  enabled: true\\n  listen: 127.0.0.1:9464\\n' > /etc/mptcpd-ebpf.yaml
        systemctl restart mptcpd-ebpf
        setpriv --reuid=65534 --regid=65534 --clear-groups python3 -I - < /root/stranger.py &
        eventually test -e /tmp/ready
        mptcpd-ebpf status | grep 'observing only'
        systemctl restart mptcpd-ebpf
        state active
        mptcpd-ebpf status | grep 'observing only'
        """
    )
