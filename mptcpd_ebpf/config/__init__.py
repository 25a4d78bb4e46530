# SPDX-License-Identifier: BSD-3-Clause
"""The configuration: its keys, the files it is read from, and the plugins it names."""
