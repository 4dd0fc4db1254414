"""Tokenizers and streams of tokens for scorers that read text."""

import random

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trimtab_models import demo
from trimtab_models.demo import world

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PIECES = [
    "I", " like", " the", " phone", "'re", " it's", " 42", "1234567", " 7", " ", "  ", "\n", "\n\n",
    "\t", ".", " !?", "(", "_", "-", "é", "e\u0301", " \u0301", "ﬁ", "\u00a0", "中文", "日本 語",
    "한국", "😀", "👩\u200d💻", "🏳️\u200d🌈", "ก\u0e33", "▁", "Ġ", "\u200b", "ß", "İ", "[SEP]",
]  # fmt: skip
"""Emoji with joiners, CJK, combining marks, white space of all kinds, signs of tokenizers' own."""


def text(draw: random.Random, pieces: int) -> str:
    return "".join(draw.choice(PIECES) for _ in range(pieces))


def corpus() -> list[str]:
    draw = random.Random(5)
    reviews = [world.review("phone", draw) for _ in range(300)]
    return [*reviews, *(text(draw, 20) for _ in range(300))]


def _train(tokenizer, trainer, **special: str) -> PreTrainedTokenizerFast:
    tokenizer.train_from_iterator(corpus(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2 and GPT-NeoX."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    return _train(tokenizer, trainer, eos_token="<|end|>", pad_token="<|end|>")


def split_by_expression() -> PreTrainedTokenizerFast:
    """As Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    return _train(tokenizer, trainer, eos_token="<|end|>", pad_token="<|end|>")


def unigram() -> PreTrainedTokenizerFast:
    """As XLM-R and DeBERTa-v3: spaces as signs, compatibility forms folded."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Strip(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=400,
        special_tokens=["[PAD]", "[CLS]", "[SEP]", "[UNK]"],
        unk_token="[UNK]",
        show_progress=False,
    )
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return _train(tokenizer, trainer, eos_token="[SEP]", **special)


def word_piece() -> PreTrainedTokenizerFast:
    """As BERT."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    return _train(tokenizer, trainer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]")


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama 2: no words, a sign put before every text, bytes for what is unknown."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", "</s>", *bytes_],
        limit_alphabet=60,
        show_progress=False,
    )
    return _train(tokenizer, trainer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {
    "byte level": byte_level,
    "split by expression": split_by_expression,
    "unigram": unigram,
    "word piece": word_piece,
    "byte fallback": byte_fallback,
}


def base():
    """The demo's tokenizer, whose streams below are."""
    return AutoTokenizer.from_pretrained(demo.base())


def stream(draw: random.Random, tokenizer, pieces: int) -> list[int]:
    """Tokens of a text, and strays among them: special ones, and bytes that are no character."""
    ids = tokenizer(text(draw, pieces), add_special_tokens=False)["input_ids"]
    for _ in range(draw.randrange(3)):
        ids.insert(draw.randrange(len(ids) + 1), draw.randrange(len(tokenizer)))
    return ids
