# SPDX-License-Identifier: BSD-3-Clause
"""Where the source tree stands, for tests that read or start what is in it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
