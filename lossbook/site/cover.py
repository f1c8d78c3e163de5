"""Draw the picture of the welcome page: ``python -m lossbook.site.cover``.

It shows the gradient of cross-entropy by the logits of SmolLM2 on real text, so it needs the model
(``lossbook fetch smollm2``) and a few seconds.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch

from lossbook import data
from lossbook.chapter import use_style

TARGET = Path(__file__).parents[2] / "book" / "_static" / "img" / "cce-map.png"
TOKENS, WORDS = 128, 1536
SMALLEST = 2.0**-12


def gradient(tokens: int) -> torch.Tensor:
    """``|softmax - onehot|`` of the first tokens of a text, words ordered by mean logit, shape ``(tokens, V)``."""
    model, head = data.smollm2(), data.smollm2_head()
    ids = data.token_blocks(data.text("python_docs"), model.tokenizer, context=tokens + 1, count=1)
    logits = data.final_hidden(model, ids)[0, :-1] @ head.T
    result = logits.softmax(1)
    result[torch.arange(tokens), ids[0, 1:]] -= 1
    return result.abs()[:, logits.mean(0).argsort(descending=True)]


def draw(path: Path = TARGET) -> Path:
    """Write the picture and return its path."""
    use_style()
    values = gradient(TOKENS)
    share = (values >= SMALLEST).float().mean().item()
    figure, axes = plt.subplots(figsize=(8, 2.9))
    picture = axes.imshow(
        values[:, :WORDS].clamp(min=2.0**-24).log2(),
        aspect="auto",
        cmap="magma",
        vmin=-20,
        vmax=0,
        interpolation="nearest",
    )
    bar = figure.colorbar(picture, ax=axes, ticks=[-20, -12, -4, 0], pad=0.01)
    bar.ax.set_yticklabels(["$2^{-20}$", "$2^{-12}$", "$2^{-4}$", "1"])
    axes.set(
        xlabel=f"the {WORDS:,} likeliest of {values.shape[1]:,} words; {share:.2%} of all entries reach $2^{{-12}}$",
        ylabel="token",
    )
    axes.grid(visible=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


if __name__ == "__main__":
    print(draw())
