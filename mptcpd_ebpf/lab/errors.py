# SPDX-License-Identifier: BSD-3-Clause
"""The lab's exceptions."""


class LabError(Exception):
    """Something about a lab that a person can put right; the message says what."""


class UnavailableError(LabError):
    """This machine cannot hold a lab (privilege, kernel, missing tool)."""
