"""The recurrence of a diagonal SSM by the native library's kernels for tensor cores."""

from __future__ import annotations

from s4_fast.ops.scan.native import Scan

_SCAN = Scan("tensor_scan")
ssm_scan = _SCAN.ssm_scan
ssm_scan_backward = _SCAN.ssm_scan_backward
