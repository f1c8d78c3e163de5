"""Turn a GGUF file into safetensors and tokenizer files: ``python -m lossbook.data.convert FILE.gguf FOLDER``.

A process of its own, because the conversion takes about 1 GB of memory and its libraries write progress bars to
standard error.
"""

from __future__ import annotations

import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path

WEIGHTS = "model.safetensors"


def weights_digest(tensors) -> str:
    """Return one SHA-256 over names, shapes and float16 values, whatever the file's layout."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().astype("<f2", copy=False).tobytes())
    return digest.hexdigest()


def convert(gguf: Path, out: Path) -> dict[str, object]:
    """Write ``model.safetensors`` (float16), ``config.json`` and the tokenizer of a llama-type GGUF file.

    Args:
        gguf: The quantised file.
        out: An existing folder.

    Returns:
        ``weights_sha256``, the largest error of the float16 rounding, and the versions of the libraries used.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": gguf.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
    exact = model.state_dict()
    if model.config.tie_word_embeddings:
        exact.pop("lm_head.weight")
    half = {name: tensor.half().contiguous() for name, tensor in exact.items()}
    difference = sum((half[name].double() - exact[name].double()).square().sum() for name in exact)
    norm = sum(exact[name].double().square().sum() for name in exact)

    save_file(half, out / WEIGHTS, metadata={"format": "pt"})
    config = model.config.to_dict()
    # The converted file is no longer quantised; left in, transformers would look for the GGUF again.
    config.pop("quantization_config", None)
    # Nor should it remember the folder it was made in.
    config = {name: value for name, value in config.items() if not name.startswith("_")}
    config |= {"architectures": [type(model).__name__], "dtype": "float16"}
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    AutoTokenizer.from_pretrained(gguf.parent, **where).save_pretrained(out)
    return {
        "weights_sha256": weights_digest(half),
        "rounding_error": float((difference / norm).sqrt()),
        "versions": {name: version(name) for name in ("torch", "transformers", "gguf", "safetensors")},
    }


def main() -> int:
    """Convert the file named on the command line and print the facts as one line of JSON."""
    gguf, out = map(Path, sys.argv[1:3])
    print(json.dumps(convert(gguf, out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
