"""What the base model is trained on: the tokenizer, whole reviews as running text, and single sentences."""

import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from trimtab.errors import UserError
from trimtab.examples.reviews.data import clean, normalised, split_sentences

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
VOCABULARY = 4096
CONTEXT = 128  # tokens of running text that the model sees at once
IGNORED = -100  # label of a position without a loss


def read_documents(path: Path) -> list[str]:
    """The whole reviews, each as one line of text, without those that quote a held-out sentence."""
    if not path.exists():
        raise UserError(f"{path}: there is no such file; give the reviews with --documents")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        documents = [clean(json.loads(line)["text"]) for line in file]
    held_out = {f" {normalised(sentence.text)} " for sentence in split_sentences("held_out")}
    return [text for text in documents if not quotes(text, held_out)]


def quotes(text: str, sentences: Iterable[str]) -> bool:
    """Whether one of the normalised sentences, with a space at each end, occurs in the text."""
    words = f" {normalised(text)} "
    return any(sentence in words for sentence in sentences)


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE that puts `<s>` in front, as Llama's does, and never merges across a space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[bos]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], end: bool) -> list[list[int]]:
    """Token ids of each text: `<s>`, its tokens, and `</s>` if `end`."""
    tail = [tokenizer.eos_token_id] if end else []
    return [text.ids + tail for text in tokenizer.backend_tokenizer.encode_batch(texts)]


class RunningText:
    """Documents end to end, cut into windows; each epoch cuts at other places and in another order."""

    def __init__(self, documents: list[list[int]]) -> None:
        self.stream = torch.tensor([token for ids in documents for token in ids])

    def batches(self, epoch: int, tokens: int) -> list[Tensor]:
        """Inputs `[tokens // CONTEXT, CONTEXT]` that together hold every token once."""
        generator = torch.Generator().manual_seed(epoch)
        offset = int(torch.randint(CONTEXT, (1,), generator=generator))
        count = (len(self.stream) - offset) // CONTEXT
        windows = self.stream[offset : offset + count * CONTEXT].view(count, CONTEXT)
        windows = windows[torch.randperm(count, generator=generator)]
        return list(windows.split(tokens // CONTEXT))


class Sentences:
    """Single sentences from `<s>` to `</s>`, batched with others of about the same length."""

    def __init__(self, sentences: list[list[int]]) -> None:
        self.sentences = sentences

    def batches(self, epoch: int, tokens: int) -> list[Tensor]:
        """Inputs `[B, T]` of about `tokens` tokens each, padded at the right with IGNORED."""
        generator = torch.Generator().manual_seed(epoch)
        shuffled = torch.randperm(len(self.sentences), generator=generator).tolist()
        order = sorted(shuffled, key=lambda index: len(self.sentences[index]))
        batches: list[list[int]] = [[]]
        for index in order:
            if (len(batches[-1]) + 1) * len(self.sentences[index]) > tokens:
                batches.append([])
            batches[-1].append(index)
        mixed = torch.randperm(len(batches), generator=generator).tolist()
        return [pad([self.sentences[index] for index in batches[place]]) for place in mixed]


def pad(rows: list[list[int]]) -> Tensor:
    """Rows of token ids as one tensor `[B, T]`, padded at the right with IGNORED."""
    tensors = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=IGNORED)
