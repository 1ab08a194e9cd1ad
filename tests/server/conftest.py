"""Small tokenizers of three kinds, built in code, with the special tokens and post-processors of known families."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = [
    "Instruct: given a web search query, retrieve relevant passages that answer the query",
    "the quick brown fox jumps over the lazy dog while seven wizards box with quiet dragons",
    "how do tides work? the moon pulls the sea, and the sea follows; that is all",
    "query: what is a transformer  passage: a model with attention and a normalised residual stream",
]
CHAT = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|embed_token|>", "<|rerank_token|>", "<s>", "</s>"]
QWEN_SPLIT = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def byte_level(template: str | None, *, trims: bool = False) -> Tokenizer:
    """Qwen's kind: NFC, its split, bytes; ``template`` such as ``$A <|endoftext|>`` is the post-processor's."""
    found = Tokenizer(models.BPE())
    found.normalizer = normalizers.NFC()
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(QWEN_SPLIT, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=CHAT,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    found.train_from_iterator(SENTENCES * 20, trainer)
    steps = [processors.ByteLevel(trim_offsets=trims)]
    if template is not None:
        special = [(token, found.token_to_id(token)) for token in CHAT if token in template]
        pair = template.replace("$A", "$A $B:1").replace("$B:1 <|endoftext|>", "$B:1 <|endoftext|>:1")
        steps.append(processors.TemplateProcessing(single=template, pair=pair, special_tokens=special))
    found.post_processor = processors.Sequence(steps)
    return found


def word_piece() -> Tokenizer:
    """BERT's kind: lower case, [CLS] and [SEP], token types."""
    found = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    found.normalizer = normalizers.BertNormalizer(lowercase=True)
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    found.train_from_iterator(SENTENCES * 20, trainer)
    found.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return found


def unigram() -> Tokenizer:
    """XLM-R's kind: pieces with a mark for spaces, ``<s> a </s></s> b </s>`` without token types."""
    found = Tokenizer(models.Unigram())
    found.normalizer = normalizers.NFKC()
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        unk_token="<unk>",
        show_progress=False,
    )
    found.train_from_iterator(SENTENCES * 20, trainer)
    found.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return found


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "bert": word_piece,
    "xlm-r": unigram,
    "bytes": lambda: byte_level(None),
    "bytes-eos": lambda: byte_level("$A <|endoftext|>"),
    "bytes-bos": lambda: byte_level("<s> $A", trims=True),
}


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tokenizer by kind: bert, xlm-r, bytes, bytes-eos, bytes-bos."""
    root = tmp_path_factory.mktemp("tokenizers")

    def folder(kind: str) -> Path:
        path = root / kind
        if not path.exists():
            path.mkdir()
            KINDS[kind]().save(str(path / "tokenizer.json"))
            (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
        return path

    return folder
