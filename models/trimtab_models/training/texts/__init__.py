"""Training of scorers that read texts: encoders, and causal networks with their own tokenizer.

An encoder reads a text in both directions, so one forward of a whole answer would let every prefix
see what follows it. Its rows are therefore truncated texts, one for each drawn length: a score
sees the prefix and nothing else. Lengths are in the base's tokens, so the prefixes are those of
decoding.

reading.py   how the initial network reads, and what cannot be trained so
rows.py      the drawn prefixes of each answer or pair
loop.py      batches of texts, the loss, and the description of the trained scorer
"""

from trimtab_models.training.texts.loop import describe, info_of, train
from trimtab_models.training.texts.reading import rows_of, texts_of
from trimtab_models.training.texts.rows import draw, some

__all__ = ["describe", "draw", "info_of", "rows_of", "some", "texts_of", "train"]
