"""Llama models of a given size with random weights, for machines and sizes that no downloaded model covers.

    python benchmarks/shapes.py --shape 1b --tokenizer FOLDER --to models/1b        then ppo.py --model models/1b

Speed and memory do not depend on what the weights say; results do, and mean nothing here. `tiny` runs anywhere.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from plaudit.dist.machine import choose_machine
from plaudit.models.load import load_tokenizer, quiet_libraries, save_model

# hidden size, MLP size, layers, heads, key heads, vocabulary (at least the tokenizer's)
SHAPES = {
    "tiny": (64, 192, 2, 4, 2, 0),
    "135m": (576, 1536, 30, 9, 3, 0),
    "0.5b": (896, 4864, 24, 14, 2, 151_936),
    "1b": (2048, 8192, 16, 32, 8, 128_256),
    "3b": (3072, 8192, 28, 24, 8, 128_256),
    "8b": (4096, 14_336, 32, 32, 8, 128_256),
}


def config_of(shape: str, tokens: int) -> LlamaConfig:
    """A shape by its name, or width:layers (heads of 64, MLP 8/3 as wide), with room for `tokens` tokens."""
    if ":" in shape:
        width, layers = map(int, shape.split(":"))
        sizes = (width, -(-width * 8 // 3 // 64) * 64, layers, max(1, width // 64), max(1, width // 192), 0)
    else:
        sizes = SHAPES[shape]
    hidden, mlp, layers, heads, key_heads, vocabulary = sizes
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=hidden // heads,
        vocab_size=max(vocabulary, tokens),
        max_position_embeddings=8192,
        tie_word_embeddings=hidden < 2048,
    )


def make(shape: str, tokenizer: str, to: Path, dtype: str = "auto") -> None:
    """Write the model and the tokenizer to a folder, made on the device, for its speed."""
    quiet_libraries()
    machine, known = choose_machine(dtype), load_tokenizer(tokenizer)
    torch.manual_seed(0)
    with torch.device(machine.device):
        model = AutoModelForCausalLM.from_config(config_of(shape, len(known)), dtype=machine.dtype)
    # Next-token laws as peaked as a trained model's, or the token that ends a reply would be drawn now and then.
    model.get_output_embeddings().weight.data.mul_(8)
    save_model(model, known, to)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", required=True, help=f"{', '.join(SHAPES)}, or WIDTH:LAYERS")
    parser.add_argument("--tokenizer", required=True, help="a Hugging Face folder; only its tokenizer is used")
    parser.add_argument("--to", required=True, type=Path)
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float32"), help="of the weights")
    given = parser.parse_args()
    make(given.shape, given.tokenizer, given.to, given.dtype)


if __name__ == "__main__":
    main()
