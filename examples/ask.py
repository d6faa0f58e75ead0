"""Asks a fine-tuned model a question, with plain transformers: python examples/ask.py FOLDER "How do I boil an egg?" """

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()


def ask(folder: str, question: str) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # The type is named for CPUs, many of which compute in bfloat16, the type that models are saved in, very slowly.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    conversation = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(
        conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=48, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    return tokenizer.decode(answer, skip_special_tokens=True)


if __name__ == "__main__":
    folder, question = sys.argv[1:]
    print(f"{folder}\n  Q: {question}\n  A: {ask(folder, question)}")
