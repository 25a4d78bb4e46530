# SPDX-License-Identifier: BSD-3-Clause
"""How sphinx makes HTML of the guides beside this file; `make docs` runs it.

What pdoc wrote to ``build/docs/site/api`` before becomes the folder ``api`` of the site.
"""

from mptcpd_ebpf import __version__

project = "mptcpd-ebpf"
author = "the mptcpd-ebpf authors"
release = __version__
extensions = ["myst_parser", "sphinx_click"]
source_suffix = {".md": "markdown"}
root_doc = "index"
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"mptcpd-ebpf {release}"
html_extra_path = ["../build/docs/site"]
