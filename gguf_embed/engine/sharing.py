"""Remembers what calls have in common, and chooses the prefixes that a window of texts shares.

It must not know contexts' cells or how a prefix is decoded.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence

from gguf_embed.engine.decoder import Decoder
from gguf_embed.engine.prefixes import Group, Tokens, common_length, group_by_prefix

__all__ = ["Sharing"]

# Earlier texts that are remembered, to see which beginnings come again, and how many of one call.
_N_SEEN, _N_SEEN_CALL = 16, 2
# Texts of all kinds: the last word of a prompt may be merged with the first of a text.
_PROBES = ("a", " a", "A", "1", " ", "\n", "?", "\u00e9", "\u4e2d")
# One more decode costs about as much as this part of a full one. Source: llama-bench, pp8 against pp512, 0.6B shape.
_DECODE_COST = 8


class Sharing:
    """What the texts of one session share; one thread at a time.

    Args:
        tokenize: texts, and `prefix` to put before each, to token lists and what was cut.
    """

    def __init__(self, tokenize: Callable[..., tuple[list[Tokens], list[int]]]) -> None:
        self._tokenize = tokenize
        self._seen: collections.deque[tuple[bytes, Tokens]] = collections.deque(maxlen=_N_SEEN)  # whole, and beginning
        self._prompts: dict[str, Tokens] = {}

    def groups(self, tokens: Sequence[Tokens], decoder: Decoder, *, prompt: str, n_batch: int) -> list[Group]:
        """Group texts by prompt, by each other's beginnings, and by what earlier texts had.

        What is in the cache does not count, nor do texts that were seen before as they are, so that the same call made
        again takes the same way, as long as it is of one window.

        Args:
            tokens: of the texts.
            decoder: that will run them.
            prompt: put before each of them; its tokens are shared from the first call on.
            n_batch: tokens of a full decode.

        Returns:
            Groups that hold each text exactly once.
        """
        n_prefix_max = decoder.n_prefix_max
        if not n_prefix_max or not tokens:
            return [Group(n_prefix=0, members=tuple(range(len(tokens))))] if tokens else []
        same = {ids.tobytes() for ids in tokens}
        groups = group_by_prefix(
            tokens,
            seen=[beginning for whole, beginning in self._seen if whole not in same],
            kept=self._prompt_tokens(prompt),
            n_prefix_max=n_prefix_max,
            n_tokens_decode=n_batch // _DECODE_COST,
        )
        known = {whole for whole, _ in self._seen}
        few = [(ids.tobytes(), ids[:n_prefix_max].copy()) for ids in tokens[:_N_SEEN_CALL]]
        self._seen.extend((whole, beginning) for whole, beginning in few if whole not in known)
        return groups

    def forget(self) -> None:
        """Group the next texts as if they were the first."""
        self._seen.clear()

    def n_prompt_tokens(self, prompt: str, decoder: Decoder) -> int:
        """Count the tokens of a prompt that its texts can share."""
        n_prefix_max = decoder.n_prefix_max
        return min(n_prefix_max, *map(len, self._prompt_tokens(prompt))) if n_prefix_max and prompt else 0

    def _prompt_tokens(self, prompt: str) -> list[Tokens]:
        """The tokens with which texts begin after this prompt, whatever the text; none for no prompt."""
        if not prompt:
            return []
        if prompt not in self._prompts:
            if len(self._prompts) == _N_SEEN:
                self._prompts.clear()
            probes, _ = self._tokenize(_PROBES, prefix=prompt)
            n_common = min(common_length(probes[0], ids) for ids in probes[1:])
            self._prompts[prompt] = probes[0][:n_common]
        return [self._prompts[prompt]]
