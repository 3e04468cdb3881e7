"""Reports the speed of every finished request."""

from __future__ import annotations

import sys

from qinfer.core.specs import ObserverPlugin, hookimpl
from qinfer.core.types import PluginInfo, RequestStats


class Speed(ObserverPlugin):
    """Prints one line for each request on stderr."""

    info = PluginInfo(
        name="speed", kind="observer", api="1.0", summary="prints each request's tokens/s"
    )

    @hookimpl
    def request_done(self, stats: RequestStats) -> None:
        """Tokens after the first, by the time they took."""
        tokens = stats.output_tokens - 1
        seconds = stats.total_seconds - stats.first_token_seconds
        speed = f"{tokens / seconds:.1f} tokens/s" if tokens and seconds else "one token"
        print(
            f"speed: {stats.output_tokens} tokens ({speed}), "
            f"the first after {stats.first_token_seconds:.3f} s",
            file=sys.stderr,
        )
