"""Bundles of dijiang in Python: run one on stock ONNX Runtime, and call the commands that make and check one."""

from .bundle import Bundle, BundleError
from .command import CommandError, convert, info, verify

__all__ = ["Bundle", "BundleError", "CommandError", "convert", "info", "verify"]
