"""WordPiece tokenizers as BERT has them, and Unigram ones as XLM-RoBERTa has them; a few hundred tokens, by hand."""

from __future__ import annotations

import string
from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram, WordPiece

from model_families.samples import WORDS

EXTRA_WORDS = ("query", "passage", "search", "document", "represent", "this", "sentence", "searching", "relevant")
MARK = "\u2581"
# Letters of other scripts, so that not all of them become the unknown token.
LETTERS = string.ascii_lowercase + string.digits + "éïöüпривет日本語"


def word_pieces(
    *,
    lowercase: bool = True,
    special: Sequence[str] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    around: tuple[str, str] = ("[CLS]", "[SEP]"),
    unknown: str = "[UNK]",
) -> Tokenizer:
    """BERT's: special tokens first, words, letters, ``##`` letters; ``around`` stands before and behind every text."""
    pieces = [*special, *dict.fromkeys((*WORDS, *EXTRA_WORDS)), *string.punctuation]
    letters = LETTERS if lowercase else LETTERS + string.ascii_uppercase
    pieces += [letter for letter in letters if letter not in pieces]
    pieces += [f"##{letter}" for letter in letters]
    vocabulary = {piece: identity for identity, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(WordPiece(vocab=vocabulary, unk_token=unknown, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    before, behind = around
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{before}:0 $A:0 {behind}:0",
        pair=f"{before}:0 $A:0 {behind}:0 $B:1 {behind}:1",
        special_tokens=[(token, vocabulary[token]) for token in around],
    )
    return tokenizer


def unigram() -> Tokenizer:
    """XLM-RoBERTa's: ``<s> <pad> </s> <unk>``, pieces by falling score; pairs are ``<s> A </s></s> B </s>``.

    The real normalizer is a table of SentencePiece; NFKC and folded spaces stand for it.
    """
    pieces = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    words = [f"{MARK}{word}" for word in dict.fromkeys((*WORDS, *EXTRA_WORDS))]
    pieces += [(word, -4.0 - 0.01 * rank) for rank, word in enumerate(words)]
    singles = [MARK, *LETTERS, *string.ascii_uppercase, *string.punctuation]
    pieces += [(single, -8.0 - 0.01 * rank) for rank, single in enumerate(dict.fromkeys(singles))]
    tokenizer = Tokenizer(Unigram([*pieces, ("<mask>", 0.0)], unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(MARK, prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(MARK, prepend_scheme="always")
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    )
    tokenizer.add_special_tokens([AddedToken("<mask>", normalized=False, special=True, lstrip=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer
