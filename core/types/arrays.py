"""The arrays that plugins and core hand to each other."""

from __future__ import annotations

from typing import Any

Array = Any
"""A numpy array, or a tensor of the backend: what it holds is documented per field."""
