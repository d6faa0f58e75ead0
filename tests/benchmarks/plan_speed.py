"""How long a plan takes, and in how much memory: Llama's shapes from their configurations, every strategy, one hardware.

Each runs in a process of its own, without the cache of traces: python tests/benchmarks/plan_speed.py
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODELS = {
    "8B": ((4096, 14336, 32, 32), "8xH100-80GB", 64),
    "70B": ((8192, 28672, 80, 64), "8x8xH100-80GB", 256),
    "405B": ((16384, 53248, 126, 128), "64x8xH100-80GB", 512),
}
TOKENS = 4096


def config(name: str, folder: Path) -> None:
    hidden, inner, layers, heads = MODELS[name][0]
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    rest = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
    (folder / "config.json").write_text(json.dumps({**sizes, **rest, "max_position_embeddings": 131072}))


def plan(name: str) -> None:
    started = time.perf_counter()
    import transformers  # noqa: F401

    import scalekit

    _, hardware, batch = MODELS[name]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SCALEKIT_CACHE"] = folder
        config(name, Path(folder))
        from transformers import LlamaForCausalLM  # noqa: F401

        imported = time.perf_counter()
        asked = {"sequence_length": TOKENS, "global_batch_size": batch}
        forecast = scalekit.plan(folder, hardware, **asked)
        fresh = time.perf_counter()
        scalekit.plan(folder, hardware, **asked)
        again = time.perf_counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    chosen = forecast.chosen.name if forecast.chosen else "nothing fits"
    print(
        f"{name:5} on {hardware:15} {fresh - imported:5.1f} s, {again - fresh:4.1f} s from the cache "
        f"(and {imported - started:.1f} s of imports), {memory:.2f} GiB of host memory: {chosen}",
        flush=True,
    )


def main() -> None:
    if len(sys.argv) > 1:
        plan(sys.argv[1])
        return
    for name in MODELS:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        subprocess.run([sys.executable, __file__, name], check=True, env=environment, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
