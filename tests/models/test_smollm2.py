"""The real SmolLM2 in float32 writes the tokens that transformers writes: greedy, 64 of them, after 20 prompts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers as hf

from octavo.loading import load

from .tiny import Driver

PROMPTS = [
    "The capital of France is", "Once upon a time", "def fibonacci(n):", "Water boils at", "The quick brown fox", "In 1969, humans", "List three fruits:",
    "E = mc^2 means", "To be or not to be", "The largest planet", "My favourite book is", "SELECT name FROM", "Dear Sir or Madam,", "Why is the sky blue?",
    "Photosynthesis is", "2 + 2 =", "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n", "El sol es", "import numpy as np\n", "The meaning of life",
]
TOKENS = 64


def test_greedy_tokens_of_the_real_model(smollm2_path: Path) -> None:
    """transformers reads each whole text once: its most likely next token at every place is the token that Octavo wrote, which is
    what its own greedy generation would have written, at a fraction of the time."""
    loaded = load(smollm2_path, quantization="32bit", use_cache=False)
    peer = hf.AutoModelForCausalLM.from_pretrained(
        str(smollm2_path.parent), gguf_file=smollm2_path.name, quantization_config=hf.GgufConfig(dequantize=True), dtype=torch.float32).eval()
    prompts = [np.array(loaded.text.encode(prompt), np.int32) for prompt in PROMPTS]
    driver = Driver(loaded, sequences=len(prompts))
    logits = driver.feed(dict(enumerate(prompts)))
    written = [[int(logits[s][-1].argmax())] for s in range(len(prompts))]
    while len(written[0]) < TOKENS:
        logits = driver.feed({s: np.array(tokens[-1:], np.int32) for s, tokens in enumerate(written)})
        for s, tokens in enumerate(written):
            tokens.append(int(logits[s][-1].argmax()))
    for prompt, ids, tokens in zip(PROMPTS, prompts, written, strict=True):
        with torch.no_grad():
            theirs = peer(torch.tensor([[*ids.tolist(), *tokens[:-1]]])).logits[0, len(ids) - 1 :]
        assert theirs.argmax(-1).tolist() == tokens, prompt
