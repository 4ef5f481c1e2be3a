"""A verifiable task small enough for a CPU: adding two three-digit numbers.

A prompt reads ``123+456=`` and its only right completion is ``579``. Every prompt has the same
length, so batches need no padding, and the answer's leading digit comes first, so the model has
to foresee carries before it has written anything.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, EOS = "<pad>", "<eos>"
VOCABULARY = (PAD, EOS, *"0123456789", "+", "=")

LOWEST, HIGHEST = 100, 999
MAX_ANSWER_TOKENS = 5  # four digits (up to 1998) and the end token
HELD_OUT_ONE_IN = 10


class Problem(NamedTuple):
    """One prompt and its only right completion (without the end token)."""

    prompt: str
    answer: str


def is_held_out(a: int, b: int) -> bool:
    """Say whether the pair belongs to the held-out tenth.

    The rule looks at the unordered pair, so that ``a+b`` in the training split never gives away
    ``b+a`` in the held-out one, and uses a checksum rather than :func:`hash`, which differs
    between processes.
    """
    key = f"{min(a, b)}+{max(a, b)}"
    return zlib.crc32(key.encode()) % HELD_OUT_ONE_IN == 0


def problems(split: str, seed: int) -> Iterator[Problem]:
    """Yield distinct problems of ``split`` ("train" or "held_out") in an order set by ``seed``."""
    if split not in ("train", "held_out"):
        raise ValueError(f"split must be 'train' or 'held_out', not {split!r}")
    rng = random.Random(seed)
    seen: set[tuple[int, int]] = set()
    while True:
        pair = (rng.randint(LOWEST, HIGHEST), rng.randint(LOWEST, HIGHEST))
        if pair in seen or is_held_out(*pair) != (split == "held_out"):
            continue
        seen.add(pair)
        yield Problem(f"{pair[0]}+{pair[1]}=", str(sum(pair)))


def careless_answer(prompt: str, rng: random.Random) -> str:
    """Answer ``prompt`` as a careless writer would: now and then a carry is forgotten.

    The larger a column's sum, the likelier its carry is lost, so a model taught by this writer is
    sure of some problems, torn on others and wrong on the rest. That leaves reinforcement
    learning what it finds in real base models: right answers that are there, but not reliable.
    """
    left, right = prompt.rstrip("=").split("+")
    digits, carry = "", 0
    for column, (a, b) in enumerate(zip(reversed(left), reversed(right), strict=True)):
        total = int(a) + int(b) + carry
        carry, digit = divmod(total, 10)
        digits = str(digit) + digits
        # The leading carry is written down, not carried, and so never lost.
        if carry and column < len(left) - 1 and rng.random() < 0.45 + 0.06 * digit:
            carry = 0
    return f"1{digits}" if carry else digits


def reward(completion: str, answer: str) -> float:
    """Return 1 for an exact match and 0 for everything else."""
    return float(completion == answer)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the character-level tokenizer; one character is one token."""
    tokenizer = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate(VOCABULARY)}, unk_token=PAD)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
