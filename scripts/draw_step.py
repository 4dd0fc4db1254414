"""Draw docs/pictures/step.svg: one guided step of SmolLM2, with its real numbers.

TRIMTAB_CACHE=FOLDER python scripts/draw_step.py    (needs `trimtab demo fetch`)
"""

from html import escape
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trimtab_models.bases import base_path
from trimtab_models.smollm2.rewards import kindness

OUT = Path(__file__).resolve().parents[1] / "docs" / "pictures" / "step.svg"
QUESTION, START = "Describe the cafe on the corner.", "The cafe on the corner is a"
BETA, K, SHOWN = 4.0, 16, 8
ROW, TOP, COLUMNS, BAR = 30, 112, (24, 330, 560), 150
STYLE = """
  text { font: 14px system-ui, sans-serif; fill: #1f2933 }
  .head { font-weight: 600; font-size: 15px } .dim { fill: #66737f; font-size: 12.5px }
  .mono { font-family: ui-monospace, monospace } .end { text-anchor: end }
  .base { fill: #93a1ae } .up { fill: #1f8a70 } .rule { stroke: #c9d1d9 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e3e8ee } .dim { fill: #9aa7b4 } .base { fill: #6b7a89 } .up { fill: #45c29f }
    .rule { stroke: #3c4753 } .back { fill: #14191f } }
  .back { fill: #ffffff }"""


def main() -> None:
    """Compute the step and write the drawing."""
    folder = base_path("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    turn = [{"role": "user", "content": QUESTION}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) + START
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        base = model(ids).logits[0, -1].log_softmax(-1)  # [vocabulary]
    tokens = base.topk(K).indices  # [k]
    words = [tokenizer.decode([token]) for token in tokens]
    scores = torch.tensor([kindness(QUESTION, START + word) for word in words])  # [k]
    bonus = torch.full_like(base, float(scores.mean()))
    bonus[tokens] = scores
    guided = (base + BETA * bonus).log_softmax(-1)
    kl = float((guided.exp() * (guided - base)).sum())
    rows = [
        (word, float(base[token].exp()), float(score), float(guided[token].exp()))
        for word, token, score in zip(words, tokens, scores, strict=True)
    ]
    kept, rest = rows[:SHOWN], rows[SHOWN:]
    kept.append(
        (
            f"{len(rest)} more candidates",
            sum(row[1] for row in rest),
            sum(row[2] for row in rest) / len(rest),
            sum(row[3] for row in rest),
        )
    )
    outside = 1 - sum(row[1] for row in rows), 1 - sum(row[3] for row in rows)
    kept.append(
        (f"all other {len(base) - K:,} tokens", outside[0], float(scores.mean()), outside[1])
    )
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(drawing(kept, kl))


def drawing(rows: list[tuple[str, float, float, float]], kl: float) -> str:
    """The picture of a step: probability before, score, probability after."""
    height = TOP + ROW * len(rows) + 48
    left, middle, right = COLUMNS
    heads = (
        (left, "1  The base proposes", "the most likely tokens, and their probability"),
        (middle, "2  A scorer reads them", "each candidate's score s"),
        (right, "3  Trimtab fuses both", f"base · exp(β · s), β = {BETA:g}"),
    )
    parts = [f'<text x="{left}" y="30" class="mono">“{START} …”</text>']
    for x, head, line in heads:
        parts.append(f'<text x="{x}" y="66" class="head">{head}</text>')
        parts.append(f'<text x="{x}" y="86" class="dim">{line}</text>')
    scale = BAR / max(max(row[1], row[3]) for row in rows)
    for i, (word, before, score, after) in enumerate(rows):
        y = TOP + ROW * i
        candidate = i < SHOWN
        if i == SHOWN:
            parts.append(f'<path d="M{left} {y - 5} H836" class="rule"/>')
        name = f'<tspan class="mono">{escape(word.strip())}</tspan>' if candidate else word
        kind = "" if candidate else ' class="dim"'
        parts.append(f'<text x="{left}" y="{y + 14}"{kind}>{name}</text>')
        base_at = left + 124 if candidate else left + 152
        parts.append(bar(base_at, y, before * scale, before, "base"))
        note = "" if candidate else ", on average"
        note = ", the candidates’ mean" if i == len(rows) - 1 else note
        sign = f"{score:+.2f}" if round(score, 2) else "0"
        parts.append(f'<text x="{middle}" y="{y + 14}" class="dim">{sign}{note}</text>')
        parts.append(bar(right, y, after * scale, after, "up" if after > before else "base"))
    cost = f"Cost of this step: {kl:.2f} nats, the divergence of the new probabilities"
    parts.append(f'<text x="{left}" y="{height - 22}">{cost} from the base’s.</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 {height}" role="img">\n'
        "<title>One guided step: the base’s probabilities, the scores, and both fused</title>\n"
        f"<style>{STYLE}\n</style>\n"
        f'<rect width="860" height="{height}" rx="10" class="back"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def bar(x: float, y: float, width: float, value: float, kind: str) -> str:
    """A bar with its value, in percent, at its end."""
    return (
        f'<rect x="{x}" y="{y + 2}" width="{max(width, 1):.1f}" height="16" rx="2" class="{kind}"/>'
        f'<text x="{x + max(width, 1) + 6:.1f}" y="{y + 14}" class="dim">{value:.0%}</text>'
    )


if __name__ == "__main__":
    main()
