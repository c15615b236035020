"""CLIP's byte-pair tokenizer as files, complete or with its first merges only, from the vocabulary in open-clip-torch.

Each merge joins two existing symbols, so the first N merges are a valid smaller tokenizer. The order of ids is that of
Radford et al. 2021 (https://github.com/openai/CLIP, simple_tokenizer.py): 256 byte symbols, the same with the
end-of-word mark, one symbol per merge, start and end of text.
"""

import gzip
import importlib.util
import json
from pathlib import Path

ALL_MERGES = 49152 - 256 - 2  # the merges of the file that CLIP uses
START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77  # tokens, with start and end


def _merges() -> list[str]:
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise SystemExit("CLIP's vocabulary is in the package open-clip-torch: pip install open-clip-torch")
    packed = Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(packed.read_bytes()).decode("utf-8").split("\n")
    return lines[1 : ALL_MERGES + 1]


def _byte_symbols() -> list[str]:
    """Return a printable character per byte: Latin-1 where printable, else 256 and up (GPT-2's bytes_to_unicode)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def write(folder: Path, *, merges: int = ALL_MERGES, pad_token: str = END) -> int:
    """Write vocab.json, merges.txt and the two small configuration files; return the number of ids.

    SDXL's first tokenizer pads with the end of text, its second with `!`, whose id is 0.
    """
    chosen = _merges()[:merges]
    symbols = _byte_symbols()
    vocabulary = [*symbols, *(symbol + "</w>" for symbol in symbols), *("".join(pair.split()) for pair in chosen)]
    vocabulary += [START, END]
    folder.mkdir(parents=True, exist_ok=True)
    ids = {token: i for i, token in enumerate(vocabulary)}
    special = {"bos_token": START, "eos_token": END, "pad_token": pad_token, "unk_token": END}
    config = {
        **special,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": True,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": MAX_LENGTH,
        "tokenizer_class": "CLIPTokenizer",
    }
    texts = {
        "vocab.json": json.dumps(ids, ensure_ascii=False) + "\n",
        "merges.txt": "\n".join(["#version: 0.2", *chosen]) + "\n",
        "special_tokens_map.json": json.dumps(special, indent=2) + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return len(ids)
