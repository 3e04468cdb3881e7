"""What an exported folder is, in words."""

from __future__ import annotations

from collections import Counter

from qinfer.core.export.manifest import Maker, Manifest


def describe(manifest: Manifest) -> list[tuple[str, str]]:
    """Lines of a name and a text."""
    config, cache, needs = manifest.config, manifest.cache, manifest.needs
    schemes = Counter(scheme.name for scheme in manifest.plan.by_layer.values())
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(schemes.items()))
    facts = "".join(f"; {name} {value}" for name, value in sorted(needs.facts.items()))
    size = sum(facts.size for facts in manifest.files.values())
    return [
        ("exported by", f"qinfer {manifest.qinfer}, Paddle {manifest.paddle}"),
        ("runs on", f"{manifest.device}, by {_words(manifest.backend)}"),
        ("model", f"{config.model_type}, read by {_words(manifest.model)}"),
        ("parameters", f"{manifest.parameters.num_parameters / 1e9:,.2f} billion"),
        ("quantised by", f"{_words(manifest.quant)}: {kinds} linears"),
        ("precision", f"{config.dtype}, computed in {config.compute_dtype}"),
        ("cache", f"{cache.dtype}, blocks of {cache.block_size} tokens"),
        ("context", f"{config.max_position_embeddings:,} tokens"),
        ("operators", f"{needs.operators}{facts}"),
        ("files", f"{len(manifest.files)} of {size:,} bytes together"),
    ]


def _words(maker: Maker) -> str:
    return f"{maker.name} ({maker.distribution} {maker.version}, API {maker.api})"
