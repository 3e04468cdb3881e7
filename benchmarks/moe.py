"""Does a mixture of experts cost what it uses? python -m benchmarks.moe [--scheme none ...]

One layer of Qwen1.5-MoE-A2.7B's shape (width 2048, experts of 1408, 4 chosen for each token) with
random weights. First the experts present grow while 4 are used: the time must stay. Then the
experts used grow while 60 are present: the time must grow with them. Medians over interleaved
rounds; passes (exit code 0) when 60 experts with 4 in use take less than 1.5 times what 8 take.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from qinfer.core.hardware.place import place
from qinfer.core.hardware.start_paddle import import_paddle
from qinfer.core.types import DeviceInfo, LinearSpec, ModelConfig

HIDDEN, INNER, TOP_K = 2048, 1408, 4
PRESENT, USED = (8, 16, 32, 60), (4, 8, 16, 32, 60)
TOKENS = 15
"""Of a step: 60 choices, so that up to 60 experts can be in use."""

CONFIG = ModelConfig(
    model_type="qwen2_moe",
    vocab_size=1,
    hidden_size=HIDDEN,
    intermediate_size=INNER,
    num_layers=1,
    num_heads=16,
    num_kv_heads=16,
    head_dim=128,
    max_position_embeddings=1,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    tie_word_embeddings=False,
)

Layer = Callable[[Any, Any], Any]


def main() -> None:
    """Measure each scheme and print its table; exit with 1 if experts that are not used cost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.moe", description=__doc__)
    parser.add_argument("--scheme", nargs="*", default=["none", "wint8", "wint4", "fp8"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    import_paddle(options.threads)
    from qinfer.cuda_ops.native import use_native

    print(use_native(require=False, progress=print))
    ok = [measure(scheme, options.rounds) for scheme in options.scheme]
    raise SystemExit(0 if all(ok) else 1)


def measure(scheme: str, rounds: int) -> bool:
    """One scheme's table; whether experts that are not used cost nothing."""
    layers = {count: build(scheme, count) for count in PRESENT}
    cases = [(count, TOP_K) for count in PRESENT] + [(60, used) for used in USED[1:]]
    times: dict[tuple[int, int], list[float]] = {case: [] for case in cases}
    for turn in range(rounds + 1):
        for case in cases:
            seconds = one(layers[case[0]][0], *case)
            if turn:  # the first warms up
                times[case].append(seconds)
    table = Table(title=f"{scheme}, {TOKENS} tokens, {TOP_K} experts each")
    for column in ("experts present", "used", "ms", "ms per expert used", "GB/s of weights"):
        table.add_column(column, justify="right")
    medians = {case: float(np.median(found)) for case, found in times.items()}
    for (count, used), seconds in medians.items():
        read = layers[count][1] / count * used
        cells = (count, used, f"{seconds * 1e3:.2f}", f"{seconds * 1e3 / used:.3f}")
        table.add_row(*map(str, cells), f"{read / seconds / 1e9:.1f}")
    Console().print(table)
    return medians[60, TOP_K] < 1.5 * medians[8, TOP_K]


def one(layer: Layer, count: int, used: int) -> float:
    """Seconds of one call in which the choices go round ``used`` of ``count`` experts."""
    rng = np.random.default_rng(0)
    chosen = np.arange(TOKENS * TOP_K) % used
    logits = np.full((TOKENS, count), -30, np.float32)
    places = rng.permutation(count)[chosen].reshape(TOKENS, TOP_K)
    np.put_along_axis(logits, places, rng.normal(size=places.shape).astype(np.float32), axis=1)
    x = place(rng.normal(size=(TOKENS, HIDDEN)).astype(np.float32))
    scores = place(logits)
    begin = time.perf_counter()
    layer(x, scores).numpy()
    return time.perf_counter() - begin


def build(scheme: str, count: int) -> tuple[Layer, int]:
    """The layer's function, and the bytes of its experts' weights."""
    from qinfer.core.registry.selection import open_session, resolve
    from qinfer.cuda_ops import ops

    hooks = open_session([resolve("quant", scheme)])

    def experts(role: str, width: int, out: int) -> Any:
        spec = LinearSpec(name=role, role=role, in_features=width, out_features=out, experts=count)
        own = hooks.plan_quant(CONFIG, [spec], DeviceInfo(kind="cpu")).by_layer[role]
        weight = np.random.default_rng(1).normal(size=(spec.rows, width)).astype(np.float32)
        packed = hooks.pack_weight(spec, own, weight)
        return hooks.build_linear(spec, own, {name: place(a) for name, a in packed.items()})

    up, down = experts("gate_up", HIDDEN, 2 * INNER), experts("down", INNER, HIDDEN)

    def layer(x: Any, logits: Any) -> Any:
        weights, chosen = ops.route(logits, TOP_K, False)
        return ops.mix_experts(down(ops.silu_gate(up(x, chosen)), chosen), weights, None, None)

    return layer, up.nbytes + down.nbytes


if __name__ == "__main__":
    main()
