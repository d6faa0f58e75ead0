"""How fast data is prepared, how full packed rows are, and how soon an epoch of a billion rows starts.

    PYTHONPATH=. python tests/benchmarks/data.py [--rounds 5] [--rows 20000]

Preparation is held against plain `datasets.map` as its documentation has it (batched, as many processes), and against TRL's
SFTTrainer where it is installed, on the same rows, tokenizer and cores, each in a process of its own with an empty cache,
in turns; the tokens that come out are compared. What is timed starts after imports and ends with rows that can be read.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODEL = Path("build/finetune/model")
DIALOGUES = Path("build/finetune/dialogues.jsonl")
CAPACITY = 512
WAYS = ("scalekit", "datasets", "trl")


def rows_of(kind: str, number: int) -> Any:
    """The dialogues over and over, each time with another number in it, as conversations or as their text."""
    import datasets

    dialogues = [json.loads(line)["messages"] for line in DIALOGUES.read_text().splitlines()]
    rows = []
    for i in range(number):
        first, *others = dialogues[i % len(dialogues)]
        turns = [{**first, "content": f"{i}: {first['content']}"}, *others]
        rows.append({"messages": turns} if kind == "chat" else {"text": "\n".join(turn["content"] for turn in turns)})
    return datasets.Dataset.from_list(rows)


def by_scalekit(rows: Any, tokenizer: Any, cores: int) -> Any:
    from scalekit.data.encoders.causal import Causal
    from scalekit.data.encoders.truncation import Limit
    from scalekit.data.preprocessing import prepare

    return prepare(rows, Causal(tokenizer, "all", Limit(CAPACITY)), "data", str).rows


def by_datasets(rows: Any, tokenizer: Any, cores: int) -> Any:
    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if "messages" in batch:
            ids = tokenizer.apply_chat_template(batch["messages"], truncation=True, max_length=CAPACITY)["input_ids"]
        else:
            texts = [text + tokenizer.eos_token for text in batch["text"]]
            ids = tokenizer(texts, truncation=True, max_length=CAPACITY)["input_ids"]
        return {"input_ids": ids, "labels": ids}

    return rows.map(encode, batched=True, num_proc=cores, remove_columns=rows.column_names)


def by_trl(rows: Any, tokenizer: Any, cores: int) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    config = AutoConfig.from_pretrained(MODEL, num_hidden_layers=1)
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_config(config),
        SFTConfig(
            output_dir=tempfile.mkdtemp(), max_length=CAPACITY, dataset_num_proc=cores, report_to=[], use_cpu=True
        ),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    return trainer.train_dataset


def measure(way: str, kind: str, number: int) -> dict[str, float]:
    """One way, in this process: seconds and tokens, and a check sum of them."""
    import pyarrow.compute as pc
    from transformers import AutoTokenizer

    cores = len(os.sched_getaffinity(0))
    rows, tokenizer = rows_of(kind, number), AutoTokenizer.from_pretrained(MODEL)
    prepare: Callable[..., Any] = {"scalekit": by_scalekit, "datasets": by_datasets, "trl": by_trl}[way]
    if way == "trl":
        import trl  # noqa: F401
    started = time.perf_counter()
    made = prepare(rows, tokenizer, cores)
    seconds = time.perf_counter() - started
    ids = pc.list_flatten(made.with_format("arrow", columns=["input_ids"])[:]["input_ids"])
    places = pc.list_value_length(made.with_format("arrow", columns=["input_ids"])[:]["input_ids"])
    return {"seconds": seconds, "tokens": len(ids), "sum": int(pc.sum(ids).as_py()), "rows": len(places)}


def in_turns(kind: str, number: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in list(found):
            with tempfile.TemporaryDirectory() as cache:
                command = [sys.executable, __file__, "--measure", way, kind, str(number)]
                done = subprocess.run(
                    command, env={**os.environ, "HF_DATASETS_CACHE": cache}, capture_output=True, text=True, check=False
                )
            if done.returncode:
                print(f"{way} is left out: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                del found[way]
            else:
                found[way].append(json.loads(done.stdout.strip().splitlines()[-1]))
    return found


def report(kind: str, found: dict[str, list[dict[str, float]]]) -> None:
    own = [each["seconds"] for each in found["scalekit"]]
    for way, each in found.items():
        rates = [one["tokens"] / one["seconds"] for one in each]
        ratios = [one["seconds"] / mine for one, mine in zip(each, own, strict=True)]
        same = (each[0]["tokens"], each[0]["sum"]) == (found["scalekit"][0]["tokens"], found["scalekit"][0]["sum"])
        print(
            f"{kind:5} {way:9} {statistics.median(rates):>10,.0f} tokens/s; its time is {statistics.median(ratios):.2f} times "
            f"ScaleKit's ({min(ratios):.2f} to {max(ratios):.2f}); {'the same' if same else 'OTHER'} tokens"
        )


def packing(number: int) -> None:
    from transformers import AutoTokenizer

    from scalekit.data.packing.packing import pack

    rows = by_scalekit(rows_of("chat", number), AutoTokenizer.from_pretrained(MODEL), 1)
    started = time.perf_counter()
    packed = pack(rows, CAPACITY)
    seconds = time.perf_counter() - started
    tokens = sum(len(row) for row in packed["input_ids"])
    print(
        f"packed {len(rows):,} rows into {len(packed):,} of {CAPACITY} in {seconds:.2f} s ({tokens / seconds:,.0f} tokens/s): "
        f"{tokens / (len(packed) * CAPACITY):.2%} useful"
    )


def billion() -> None:
    import resource

    from scalekit.data.loading.map_loader import Loader
    from scalekit.data.sampling.batch_order import BatchOrder

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    loader = Loader(range(10**9), list, BatchOrder(10**9, 64, 8, 8, seed=1), 3, lambda b, n: n, position=64 * 10**6)
    next(iter(loader))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"an epoch of 10^9 rows starts in {time.perf_counter() - started:.3f} s and {(after - before) / 1024:.1f} MiB"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--measure", nargs=3)
    options = parser.parse_args()
    if options.measure:
        way, kind, number = options.measure
        print(json.dumps(measure(way, kind, int(number))))
    else:
        for kind in ("text", "chat"):
            report(kind, in_turns(kind, options.rows, options.rounds))
        with tempfile.TemporaryDirectory() as cache:
            import datasets

            datasets.config.HF_DATASETS_CACHE = Path(cache)
            packing(options.rows)
        billion()
