"""A language model of transformers, patched and as it is, on one thread of this CPU (``pip install transformers``).

python -m bench.patched_transformers --model HrmText --dtype float32

Random weights. Prints milliseconds of CPU time, the minimum over turns: one forward of a prompt, greedy generation of
32 tokens after 16, and (with --train) a forward and backward.
"""

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import torch

import hrm_kernels


def model_of(name: str, width: int, layers: int) -> Any:
    import transformers

    torch.manual_seed(0)
    sizes: dict[str, int] = {"vocab_size": 2048, "hidden_size": width, "intermediate_size": 3 * width}
    sizes |= {"num_attention_heads": width // 64, "pad_token_id": 0}
    if name == "HrmText":
        sizes |= {"num_layers_per_stack": layers // 2, "H_cycles": 2, "L_cycles": 2}
    else:
        sizes |= {"num_hidden_layers": layers, "num_key_value_heads": width // 128, "head_dim": 64}
    return getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**sizes)).eval()


def in_turns(calls: list[Callable[[], object]], turns: int) -> list[float]:
    """The least milliseconds of each call."""
    best = [float("inf")] * len(calls)
    for turn in range(turns + 1):  # the first ones compare and warm up
        for index, call in enumerate(calls):
            start = time.thread_time()
            call()
            if turn:
                best[index] = min(best[index], 1e3 * (time.thread_time() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="Llama", choices=["HrmText", "Llama", "Qwen3"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the prompt")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--train", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plain = model_of(arguments.model, arguments.width, arguments.layers).to(getattr(torch, arguments.dtype))
    patched = copy.deepcopy(plain)
    start = time.thread_time()
    report = hrm_kernels.patch(patched)
    print(f"patch: {len(report.replaced)} modules in {time.thread_time() - start:.1f} s")
    tokens = torch.randint(3, 2048, (1, arguments.prompt))

    def forward(model: Any) -> Callable[[], object]:
        return torch.no_grad()(lambda: model(tokens))

    def generate(model: Any) -> Callable[[], object]:
        return lambda: model.generate(tokens[:, :16], max_new_tokens=32, min_new_tokens=32, do_sample=False)

    def train(model: Any) -> Callable[[], object]:
        return lambda: model(tokens, labels=tokens).loss.backward()

    kinds = {"forward": forward, "generate": generate} | ({"train": train} if arguments.train else {})
    for name, kind in kinds.items():
        own, ours = in_turns([kind(plain), kind(patched)], arguments.turns)
        print(f"{name}: {own:.0f} ms, patched {ours:.0f} ms: {own / ours:.2f} times as fast", flush=True)


if __name__ == "__main__":
    main()
