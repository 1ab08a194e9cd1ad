"""The tokenizers of BERT (WordPiece) and XLM-RoBERTa (Unigram), small, with the published ids, templates and files.

``sentencepiece.bpe.model``, from which XLM-R's tokenizer.json was made, is left out: nothing reads it.
"""

from __future__ import annotations

import string
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from model_families.files import write_tokenizer
from model_families.samples import WORDS
from model_families.tokenizers_pieces import EXTRA_WORDS, LETTERS, unigram

SPECIALS = ("[PAD]", *(f"[unused{n}]" for n in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_wordpiece(folder: Path, *, max_tokens: int, has_baked_limits: bool = False) -> int:
    """bert-base-uncased's tokenizer with few words; returns the number of its ids.

    [PAD] 0, [unused0] 1, [UNK] 100, [CLS] 101, [SEP] 102, [MASK] 103 as published. ``has_baked_limits`` leaves the
    truncation and padding to 128 in tokenizer.json that all-MiniLM carries and every library overrules.
    """
    letters = dict.fromkeys((*LETTERS, *string.punctuation))
    pieces = [*letters, *(f"##{letter}" for letter in letters), *WORDS, *EXTRA_WORDS]
    tokens = list(dict.fromkeys((*SPECIALS, *pieces)))
    tokenizer = Tokenizer(models.WordPiece({token: id for id, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", SPECIALS.index("[CLS]")), ("[SEP]", SPECIALS.index("[SEP]"))],
    )
    if has_baked_limits:
        tokenizer.enable_truncation(128)
        tokenizer.enable_padding(length=128, pad_id=0, pad_token="[PAD]")
    config: dict[str, object] = {
        "clean_up_tokenization_spaces": True, "cls_token": "[CLS]", "do_basic_tokenize": True, "do_lower_case": True,
        "mask_token": "[MASK]", "model_max_length": max_tokens, "never_split": None, "pad_token": "[PAD]",
        "sep_token": "[SEP]", "strip_accents": None, "tokenize_chinese_chars": True,
        "tokenizer_class": "BertTokenizer", "unk_token": "[UNK]",
    }  # fmt: skip
    write_tokenizer(folder, tokenizer, config, *(name for name in config if name.endswith("_token")))
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return len(tokens)


def write_unigram(folder: Path, *, max_tokens: int) -> int:
    """xlm-roberta's tokenizer with few words; returns the number of its ids.

    <s> 0, <pad> 1, </s> 2, <unk> 3 and <mask> last as published.
    """
    tokenizer = unigram()
    config: dict[str, object] = {
        "bos_token": "<s>", "clean_up_tokenization_spaces": True, "cls_token": "<s>", "eos_token": "</s>",
        "mask_token": "<mask>", "model_max_length": max_tokens, "pad_token": "<pad>", "sep_token": "</s>",
        "tokenizer_class": "XLMRobertaTokenizer", "unk_token": "<unk>",
    }  # fmt: skip
    write_tokenizer(folder, tokenizer, config, *(name for name in config if name.endswith("_token")))
    return tokenizer.get_vocab_size()


def read_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer.json without the limits that it may carry."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
