"""Byte-level BPE as Qwen and Llama 3 have it, and the SentencePiece kind of Mistral; below 1,000 tokens."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from model_families.samples import WORDS

# Numbers are cut into single digits by Qwen and into up to three by Llama 3; the rest is the same.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PROMPT_WORDS = (
    "Query", "Document", "query", "document", "passage", "Instruct", "Given", "web", "search", "retrieve", "relevant",
    "passages", "that", "system", "user", "assistant", "Judge", "whether", "meets", "requirements", "based", "on",
    "provided", "Note", "can", "only", "be", "yes", "no", "Yes", "No",
)  # fmt: skip
MARK = "\u2581"  # SentencePiece's mark for a space


@dataclass(frozen=True)
class Pieces:
    """What training gives: pieces by id, and the merges that make them, the first first."""

    vocabulary: dict[str, int]
    merges: list[tuple[str, str]]


def _train(pre_tokenizer: pre_tokenizers.PreTokenizer, alphabet: list[str]) -> Pieces:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    words = (*WORDS, *PROMPT_WORDS)
    trainer = BpeTrainer(vocab_size=3000, min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*words, *(f" {word}" for word in words)], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return Pieces(model["vocab"], [(left, right) for left, right in model["merges"]])


@functools.cache
def byte_pieces() -> Pieces:
    """Every word of the samples is one token, at the start and behind a space, above the 256 bytes."""
    return _train(pre_tokenizers.ByteLevel(add_prefix_space=False), sorted(pre_tokenizers.ByteLevel.alphabet()))


@functools.cache
def marked_pieces() -> Pieces:
    """The same with SentencePiece's mark for spaces."""
    return _train(pre_tokenizers.Metaspace(MARK, prepend_scheme="never"), [MARK])


def append(token: str, identity: int) -> processors.PostProcessor:
    """The post-processor that puts one special token behind every text, and behind both of a pair."""
    return processors.TemplateProcessing(
        single=f"$A {token}", pair=f"$A {token} $B:1 {token}:1", special_tokens=[(token, identity)]
    )


def byte_level(
    special: Sequence[str], *, digits: str = "", plain: Sequence[str] = (), nfc: bool = True, ending: str | None = None
) -> Tokenizer:
    """Byte-level BPE with ``special`` tokens above the trained ones, in that order, and ``plain`` added ones behind.

    ``digits`` is the quantifier of numbers, "{1,3}" for Llama 3. ``ending`` is the token that the post-processor
    appends; None leaves only the byte-level one, which adds nothing.
    """
    pieces = byte_pieces()
    tokenizer = Tokenizer(BPE(vocab=pieces.vocabulary, merges=pieces.merges))
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT.format(digits=digits)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in plain])
    plainly = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    last = [] if ending is None else [append(ending, tokenizer.token_to_id(ending))]
    tokenizer.post_processor = processors.Sequence([plainly, *last]) if last else plainly
    return tokenizer


def sentence_pieces() -> Tokenizer:
    """Mistral's: ``<unk> <s> </s>``, 256 bytes to fall back on, pieces; only ``<s>`` is added, in front."""
    pieces = marked_pieces()
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    ordered = [*first, *sorted(pieces.vocabulary, key=pieces.vocabulary.__getitem__)]
    tokenizer = Tokenizer(
        BPE(
            vocab={piece: identity for identity, piece in enumerate(ordered)}, merges=pieces.merges, unk_token="<unk>",
            fuse_unk=True, byte_fallback=True,
        )
    )  # fmt: skip
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in first[:3]])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return tokenizer
