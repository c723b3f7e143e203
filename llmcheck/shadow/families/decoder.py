"""A decoder with a head on it: what all ``…ForCausalLM`` classes share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llmcheck.shadow.families.base import CausalLM, Config, Run
from llmcheck.shadow.loss import head_and_loss
from llmcheck.shadow.module import Build, Linear, Module
from llmcheck.shadow.tensor import Tensor


class DecoderLM(CausalLM):
    """`decoder` under the name that transformers gives it, the head, the loss.

    `embedding` is the token embedding, whose weight a tied head shares; `width`: elements of a hidden state at the head; `bias`: the head
    has one; `post`: what happens to the logits.
    """

    def __init__(
        self,
        build: Build,
        config: Config,
        run: Run,
        name: str,
        decoder: Module,
        embedding: Any,
        width: int,
        *,
        bias: bool = False,
        post: Sequence[Callable[[Tensor], Tensor]] = (),
    ) -> None:
        self.loss, self.post = run.loss, post
        self.decoder_name = name
        self._token_embedding = (embedding,)  # in a tuple, since it is no child of this module
        setattr(self, name, decoder)
        self.lm_head = Linear(build, width, config.vocab_size, bias)
        if config.tie_word_embeddings:
            build.tied(self.lm_head, "weight", embedding.weight)

    @property
    def decoder(self) -> Module:
        found: Module = getattr(self, self.decoder_name)
        return found

    @property
    def token_embedding(self) -> Module:
        """``get_input_embeddings()`` as it was built."""
        found: Module = self._token_embedding[0]
        return found

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden_states = self.decoder(ids, mask, self)
        return head_and_loss(self.lm_head, hidden_states, labels, self.loss, self.post)
