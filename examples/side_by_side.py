"""Two language models answer the same prompt: ``python examples/side_by_side.py DENSE SMALLER ["The prompt"]``.

Both are folders that transformers loads, such as a model and what ``nervure prune hf:FOLDER --data text:FILE --out
SMALLER`` made of it; nothing of nervure is needed here. Needs ``pip install transformers``.
"""

import sys
import time

import torch

try:
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging
except ImportError as error:
    sys.exit(f"This example needs one more package ({error}): pip install transformers")

PROMPT = "The capital of France is"
TOKENS = 40


def answer(folder: str, prompt: str) -> str:
    """Greedily, so that nothing is by chance; with the number of parameters and the time for a token."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    given = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    start = time.perf_counter()
    with torch.no_grad():
        said = model.generate(**given, max_new_tokens=TOKENS, do_sample=False, pad_token_id=tokenizer.eos_token_id or 0)
    made = said.shape[1] - given["input_ids"].shape[1]
    each = 1e3 * (time.perf_counter() - start) / max(made, 1)
    size = sum(parameter.numel() for parameter in model.parameters())
    text = tokenizer.decode(said[0], skip_special_tokens=True)
    return f"{folder}: {size / 1e6:,.1f} M parameters, {each:.0f} ms a token\n  {text.strip()}"


def main() -> None:
    """Print both answers."""
    if len(sys.argv) < 3:
        print(__doc__)
        return
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for folder in sys.argv[1:3]:
        print(answer(folder, " ".join(sys.argv[3:]) or PROMPT), flush=True)


if __name__ == "__main__":
    main()
