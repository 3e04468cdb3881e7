"""A conversation's history, kept short enough for the model's context."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qinfer.core.cli.texts import check_prompt, with_system
from qinfer.core.errors import BadInput

if TYPE_CHECKING:
    from qinfer.core.llm import LLM

_ROOM = 256  # tokens kept free for an answer that has no limit of its own


class Conversation:
    """System message and turns. A turn is a question with its answer."""

    def __init__(self, llm: LLM, max_tokens: int | None, system: str = "") -> None:
        self._llm = llm
        self.system = system
        self._turns: list[list[dict[str, str]]] = []
        # A long answer limit must not push the whole history out.
        self._room = min(max_tokens or _ROOM, llm.max_model_len // 4)

    def reset(self) -> None:
        """Forget all turns."""
        self._turns.clear()

    def ask(self, text: str) -> tuple[list[dict[str, str]], int]:
        """Add a question; return the messages to answer, and how many of the oldest turns were
        dropped to make room. Raises BadInput, and forgets the question, if it doesn't fit by
        itself or the chat template refuses it.
        """
        kept = [*self._turns, [{"role": "user", "content": check_prompt(text)}]]
        dropped = 0
        while True:
            messages = with_system([m for turn in kept for m in turn], self.system)
            if self._tokens(messages) + self._room <= self._llm.max_model_len:
                break
            if len(kept) == 1:
                raise BadInput(
                    f"the message is too long for the context of {self._llm.max_model_len} tokens",
                    remedy="Shorten it, or raise --max-model-len if the model allows more.",
                )
            del kept[0]
            dropped += 1
        self._turns = kept
        return messages, dropped

    def answered(self, text: str) -> None:
        """Add the answer to the last question."""
        self._turns[-1].append({"role": "assistant", "content": text})

    def take_back(self) -> None:
        """Forget the last question."""
        self._turns.pop()

    def _tokens(self, messages: list[dict[str, str]]) -> int:
        return len(self._llm.tokenizer.encode(self._llm.chat_text(messages)))
