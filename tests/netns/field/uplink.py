# SPDX-License-Identifier: BSD-3-Clause
"""An uplink of the client that changes networks, as a laptop or phone does."""

from mptcpd_ebpf.lab import Lab, LivePath


class Uplink:
    """The client's end of a path.  Network 0 is the path's own; others are made when needed."""

    def __init__(self, lab: Lab, path: LivePath) -> None:
        self._lab = lab
        self._path = path
        self._client = lab.client
        self._known = {0}

    @property
    def interface(self) -> str:
        return self._path.client_if

    def address(self, network: int) -> str:
        return self._path.client_ip if network == 0 else f"{self._prefix(network)}.2"

    def _prefix(self, network: int) -> str:
        if network == 0:
            return self._path.client_ip.rpartition(".")[0]
        return f"10.{90 + network}.{self._path.index + 1}"

    def _make(self, network: int) -> None:
        """The router and the server know the network from now on."""
        if network in self._known:
            return
        self._known.add(network)
        prefix = self._prefix(network)
        near, far = self._router_end(self._prefix(0)), self._path.server_ip.rpartition(".")[0]
        self._path.router.run(["ip", "address", "add", f"{prefix}.1/24", "dev", near])
        self._lab.server.run(["ip", "route", "add", f"{prefix}.0/24", "via", f"{far}.1"])

    def _router_end(self, prefix: str) -> str:
        shown = self._path.router.run(["ip", "-o", "-4", "address", "show", "to", f"{prefix}.1"])
        return shown.stdout.split()[1].partition("@")[0]

    def enter(self, network: int, *, route: bool = True) -> None:
        """Gets an address of a network, and its routes, as from a DHCP client."""
        self._make(network)
        prefix = self._prefix(network)
        self._client.run(
            ["ip", "address", "add", f"{prefix}.2/24", "dev", self.interface], check=False
        )
        if route:
            self.get_route(network)

    def get_route(self, network: int) -> None:
        """A default route through the uplink, and one for what comes from its address."""
        prefix, table = self._prefix(network), str(200 + 10 * self._path.index + network)
        default = ["default", "via", f"{prefix}.1", "dev", self.interface]
        self._client.run(["ip", "route", "replace", *default, "table", table])
        self._client.run(["ip", "route", "replace", *default, "metric", str(50 + network)])
        for lab_path in self._lab.paths:
            server = lab_path.server_ip.rpartition(".")[0]
            if lab_path is self._path:
                via = ["via", f"{prefix}.1", "dev", self.interface]
                self._client.run(["ip", "route", "replace", f"{server}.0/24", *via])
        rule = ["from", f"{prefix}.2", "lookup", table]
        self._client.run(["ip", "rule", "add", *rule], check=False)

    def leave(self, network: int) -> None:
        """Loses the address of a network; the kernel removes its routes."""
        address = f"{self.address(network)}/24"
        self._client.run(["ip", "address", "del", address, "dev", self.interface])
