"""Text as people store it: the batch is made from what stands in the file, by hand."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from torch import nn

from tests.corpus.case import FILES, Case, padded
from tests.corpus.models import bert, gpt2, llama, mamba, mixtral, t5
from tests.support.language_model import make_tokenizer

TOKENIZER = make_tokenizer()
TEXTS = ["what a day", "yes", "no 001", "2020-01-01"]
ANSWERED = {"loss_on": "completions", "processor": TOKENIZER}
TOOLS_TEMPLATE = (
    "{% if tools %}<t>{{ tools | tojson }}#{% endif %}{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] or '' }}"
    "{% for c in m['tool_calls'] or [] %}<c>{{ c['function']['name'] }}{{ c['function']['arguments'] | tojson }}{% endfor %}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


def ids(text: str) -> list[int]:
    found: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return found


def whole(texts: list[str]) -> Callable[[], dict[str, Any]]:
    """All of each text is learned, and its end."""
    return lambda: padded([ids(text + "#") for text in texts])


def answers(rows: list[list[tuple[str, bool]]]) -> Callable[[], dict[str, Any]]:
    """Pieces of each text, and whether they are learned."""
    tokens = [[token for text, _ in row for token in ids(text)] for row in rows]
    labels = [[token if learned else -100 for text, learned in row for token in ids(text)] for row in rows]
    return lambda: padded(tokens, labels)


def file(name: str) -> Callable[[Path], str]:
    return lambda folder: str(FILES / name)


def written(name: str, write: Callable[[Path], Any]) -> Callable[[Path], str]:
    """A file that is made, since it is no text."""

    def make(folder: Path) -> str:
        if not (folder / name).exists():
            write(folder / name)
        return str(folder / name)

    return make


def of_text(data: Callable[[Path], Any], texts: list[str] = TEXTS, **settings: Any) -> Case:
    return Case(llama, data, whole(texts), settings={"processor": TOKENIZER, **settings})


def gzipped(path: Path) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()))


def encoded_column(path: Path) -> None:
    """Text as Parquet's writers store what comes again and again."""
    pq.write_table(pa.table({"text": pa.array(TEXTS).dictionary_encode()}), path)


def large_column(path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array(TEXTS, pa.large_string()), "i": [1, 2, 3, 4]}), path)


def nested(path: Path) -> None:
    turn = pa.struct({"role": pa.string(), "content": pa.string(), "tool_calls": pa.list_(pa.string())})
    pq.write_table(pa.table({"messages": pa.array(CHATS, pa.list_(turn)), "meta": [{"a": 1}, {"a": 2}]}), path)


def streamed(path: Path) -> None:
    table = pa.table({"text": TEXTS})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


CHATS = [
    [
        {"role": "user", "content": "what?"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "no way"},
    ],
    [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "who?"},
        {"role": "assistant", "content": "me"},
    ],
]
CHAT_BATCH = answers(
    [
        [("<u>what?#<a>", False), ("yes#", True), ("<u>and?#<a>", False), ("no way#", True)],
        [("<s>be kind#<u>who?#<a>", False), ("me#", True)],
    ]
)
ROWS = [[3, 4, 5, 6], [7, 8], [9, 10, 11], [12, 13, 14, 15, 16]]
LABELS = [[-100, -100, 5, 6], [-100, 8], [-100, 10, 11], [-100, -100, -100, 15, 16]]


def tools_tokenizer() -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TOOLS_TEMPLATE
    return tokenizer


def tools_batch() -> dict[str, Any]:
    """Bare transformers' own mask, of the same template with tags for what the assistant generates."""
    tokenizer = tools_tokenizer()
    said = "{{ m['content'] or '' }}{% for c in m['tool_calls'] or [] %}<c>{{ c['function']['name'] }}"
    said += "{{ c['function']['arguments'] | tojson }}{% endfor %}{{ eos_token }}"
    begin, end = TOOLS_TEMPLATE.index("{{ m['content']"), TOOLS_TEMPLATE.index("{% endfor %}{% if add_gen")
    assert TOOLS_TEMPLATE[begin:end] == said
    either = f"{{% if m['role'] == 'assistant' %}}{{% generation %}}{said}{{% endgeneration %}}{{% else %}}{said}{{% endif %}}"
    tokenizer.chat_template = TOOLS_TEMPLATE[:begin] + either + TOOLS_TEMPLATE[end:]
    rows, labels = [], []
    for line in (FILES / "tools.jsonl").read_text().splitlines():
        row = json.loads(line)
        for message in row["messages"]:
            for call in message.get("tool_calls", ()):
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        made = tokenizer.apply_chat_template(
            row["messages"], tools=json.loads(row["tools"]), return_dict=True, return_assistant_tokens_mask=True
        )
        rows.append(made["input_ids"])
        labels.append([t if m else -100 for t, m in zip(made["input_ids"], made["assistant_masks"], strict=True)])
    return padded(rows, labels)


def masked_rows(folder: Path) -> Any:
    return datasets.Dataset.from_dict({"input_ids": ROWS, "labels": LABELS})


def smoothed(model: Any, batch: dict[str, Any]) -> Any:
    """As a plain loop would have it, each token predicted by the one before it."""
    logits, labels = model(**batch).logits[:, :-1], batch["labels"][:, 1:]
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)


def padded_rows(folder: Path) -> Any:
    batch = padded(ROWS)
    return datasets.Dataset.from_dict({name: batch[name].tolist() for name in ("input_ids", "attention_mask")})


def translated() -> dict[str, Any]:
    return {
        **{name: value for name, value in padded([ids("ab"), ids("cde")]).items() if name != "labels"},
        "labels": padded([ids("cd"), ids("f")])["labels"],
    }


CASES: dict[str, Case] = {
    "jsonl with a byte order mark and CRLF": of_text(file("bom_crlf.jsonl")),
    "json array": of_text(file("array.json")),
    "csv of words that look like nothing": of_text(
        file("words.csv"), ["NA", "null", "one, two", 'she said "no"', "001", "True"]
    ),
    "text lines": of_text(file("lines.txt")),
    "gzipped jsonl": Case(
        llama,
        written("rows.jsonl.gz", gzipped),
        settings={"processor": TOKENIZER},
        refused="no data file that can be read",
    ),
    "parquet of a dictionary": of_text(written("rows.parquet", encoded_column)),
    "parquet of large strings": of_text(written("rows.parquet", large_column)),
    "arrow stream": of_text(written("rows.arrow", streamed)),
    "data set": of_text(lambda folder: datasets.Dataset.from_dict({"text": TEXTS})),
    "stream": of_text(lambda folder: datasets.Dataset.from_dict({"text": TEXTS}).to_iterable_dataset()),
    "nested parquet": Case(llama, written("rows.parquet", nested), CHAT_BATCH, settings=ANSWERED),
    "sharegpt": Case(llama, file("sharegpt.json"), CHAT_BATCH, settings=ANSWERED),
    "sharegpt with its system beside": Case(
        llama,
        lambda folder: [
            {"system": "be kind", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            {"system": "", "conversations": [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "yes"}]},
        ],
        answers([[("<s>be kind#<u>a#<a>", False), ("b#", True)], [("<u>what?#<a>", False), ("yes#", True)]]),
        settings=ANSWERED,
    ),
    "label smoothing": Case(
        llama,
        padded_rows,
        lambda: padded(ROWS),
        loss=smoothed,
        settings={"loss": nn.CrossEntropyLoss(label_smoothing=0.1)},
    ),
    "weighted turns": Case(
        llama,
        file("weighted.jsonl"),
        answers(
            [
                [("<u>what?#<a>bad#<u>and?#<a>", False), ("good#", True)],
                [("<u>who?#<a>", False), ("me#", True)],
            ]
        ),
        settings=ANSWERED,
    ),
    "weighted turns, all learned": Case(
        llama, file("weighted.jsonl"), settings={"processor": TOKENIZER}, refused="turns of weight 0, and loss_on='all'"
    ),
    "openai tools in json text": Case(
        llama, file("tools.jsonl"), tools_batch, settings={**ANSWERED, "processor": tools_tokenizer()}
    ),
    "prompt and completion": Case(
        llama,
        lambda folder: [{"prompt": "ab", "completion": "cd"}, {"prompt": "a", "completion": "f"}],
        answers([[("ab", False), ("cd#", True)], [("a", False), ("f#", True)]]),
        settings=ANSWERED,
    ),
    "prompt and completion in turns": Case(
        llama,
        lambda folder: [{"prompt": chat[:-1], "completion": chat[-1:]} for chat in CHATS],
        answers(
            [
                [("<u>what?#<a>yes#<u>and?#<a>", False), ("no way#", True)],
                [("<s>be kind#<u>who?#<a>", False), ("me#", True)],
            ]
        ),
        settings=ANSWERED,
    ),
    "alpaca": Case(
        llama,
        file("alpaca.json"),
        settings={"processor": TOKENIZER},
        refused="no column that causal-lm can be trained on",
    ),
    "preference pairs": Case(
        llama,
        file("preferences.jsonl"),
        settings={"processor": TOKENIZER},
        refused="no column that causal-lm can be trained",
    ),
    "tokens with labels": Case(llama, masked_rows, lambda: padded(ROWS, LABELS)),
    "tokens with padding": Case(llama, padded_rows, lambda: padded(ROWS)),
    "untied head": Case(lambda: llama(tied=False), masked_rows, lambda: padded(ROWS, LABELS)),
    "no pad token": Case(gpt2, masked_rows, lambda: padded(ROWS, LABELS)),
    "mixture of experts": Case(mixtral, masked_rows, lambda: padded(ROWS, LABELS)),
    "state space": Case(mamba, masked_rows, lambda: padded(ROWS, LABELS)),
    "masked tokens": Case(lambda: bert("MaskedLM"), masked_rows, lambda: padded(ROWS, LABELS)),
    "tokens of a masked model without labels": Case(
        lambda: bert("MaskedLM"), padded_rows, refused="add the column 'labels', the tokens that were masked"
    ),
    "translation": Case(
        t5,
        lambda folder: [{"prompt": "ab", "completion": "cd"}, {"prompt": "cde", "completion": "f"}],
        translated,
        settings={"processor": TOKENIZER},
    ),
}
