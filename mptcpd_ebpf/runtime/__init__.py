# SPDX-License-Identifier: BSD-3-Clause
"""What every program of the package needs: exit codes, signals, logging, files at run time."""
