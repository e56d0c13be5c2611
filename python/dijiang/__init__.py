"""Bundles of dijiang in Python: run one on stock ONNX Runtime, and call the commands that make and check one."""

from .bundle import Bundle, BundleError, likeliest
from .command import CommandError, adapt, convert, info, run, verify, version

__all__ = ["Bundle", "BundleError", "CommandError", "adapt", "convert", "info", "likeliest", "run", "verify"]
__version__ = version()
