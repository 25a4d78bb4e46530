# SPDX-License-Identifier: BSD-3-Clause
"""The package on a real system: installed, upgraded, rebooted, removed and purged."""

from pathlib import Path

from tests.booted.system import System, newer

INSTALL = "dpkg -i /root/mptcpd-ebpf.deb\n"


def test_an_installed_package_observes_and_a_reboot_starts_it_again(with_package: System) -> None:
    with_package.run(
        INSTALL
        + """
        state active
        [ "$(systemctl is-enabled mptcpd-ebpf)" = enabled ]
        mptcpd-ebpf status | grep 'observing only'
        mptcpd-ebpf status | grep -E '^probes +core: '
        path_manager kernel
        mptcpd-ebpf doctor --json > /root/doctor.json
        cmp /etc/mptcpd-ebpf.yaml /usr/share/doc/mptcpd-ebpf/mptcpd-ebpf.yaml ||
            zcmp /etc/mptcpd-ebpf.yaml /usr/share/doc/mptcpd-ebpf/mptcpd-ebpf.yaml.gz
        [ -f "$(man -w 8 mptcpd-ebpf)" ]
        [ -f "$(man -w 5 mptcpd-ebpf.yaml)" ]
        [ -s /usr/share/bash-completion/completions/mptcpd-ebpf ]
        # What the user may not write is there: a start compiles nothing.
        [ -n "$(find /usr/lib/mptcpd-ebpf -name '*.pyc' -print -quit)" ]
        dpkg --verify mptcpd-ebpf
        """
    )
    with_package.run(
        """
        eventually state active
        mptcpd-ebpf status | grep 'observing only'
        """
    )


def test_an_upgrade_keeps_the_configuration_and_live_connections(
    with_package: System, deb: Path, tmp_path: Path
) -> None:
    with_package.add(newer(deb, tmp_path), "root/newer.deb")
    with_package.run(
        INSTALL
        + """
        for number in 1 2 9; do
            ip link add "d$number" type veth peer name "p$number"
            ip address add "10.0.$number.1/24" dev "d$number"
            ip link set "d$number" up
            ip link set "p$number" up
        done
        ip link set lo up
        echo 'path_manager: adaptive' > /etc/mptcpd-ebpf.yaml
        mptcpd-ebpf reload
        eventually path_manager userspace
        python3 -I /root/talk.py 10.0.1.1 10.0.9.1 &
        eventually test -s /root/answers
        before=$(property MainPID)
        dpkg -i /root/newer.deb
        state active
        [ "$(property MainPID)" != "$before" ]
        grep -x 'path_manager: adaptive' /etc/mptcpd-ebpf.yaml
        mptcpd-ebpf status | grep adaptive
        path_manager userspace
        # The connection is known to the new daemon, and still answers.
        mptcpd-ebpf ls | grep '10.0.1.1:.*10.0.9.1:5000'
        answered=$(stat -c %s /root/answers)
        more() { [ "$(stat -c %s /root/answers)" -gt "$answered" ]; }
        eventually more
        [ ! -e /root/broken ]
        """
    )


def test_nothing_is_left_after_removal_and_purge(with_package: System) -> None:
    with_package.run(
        INSTALL
        + """
        echo 'path_manager: adaptive' > /etc/mptcpd-ebpf.yaml
        systemctl reload mptcpd-ebpf
        eventually path_manager userspace
        pid=$(property MainPID)
        dpkg -r mptcpd-ebpf
        [ ! -e "/proc/$pid" ]
        path_manager kernel
        [ -e /etc/mptcpd-ebpf.yaml ]
        [ ! -e /usr/lib/mptcpd-ebpf ]
        [ ! -e /run/mptcpd-ebpf ]
        dpkg -P mptcpd-ebpf
        [ ! -e /etc/mptcpd-ebpf.yaml ]
        [ -z "$(find / -xdev -name '*mptcpd-ebpf*' -not -path '/root/*' -not -path '/proc/*' \\
            -not -path '/sys/*' -not -path '/var/log/*')" ]
        """
    )
