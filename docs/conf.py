# SPDX-License-Identifier: BSD-3-Clause
"""How sphinx makes HTML of the guides beside this file; `make docs` runs it.

What pdoc wrote to ``build/docs/site/api`` before becomes the folder ``api`` of the site.
"""

from mptcpd_ebpf import __version__

project = "mptcpd-ebpf"
author = "the mptcpd-ebpf authors"
release = __version__
extensions = ["myst_parser", "sphinx_click"]
# sphinx-click writes reStructuredText, which a Markdown page would show as it is.
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
root_doc = "index"
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"mptcpd-ebpf {release}"
html_extra_path = ["../build/docs/site"]
