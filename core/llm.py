"""The Python API: a loaded model that answers prompts and conversations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qinfer.core.errors import BadInput, QinferError, UsageError
from qinfer.core.params import SamplingParams
from qinfer.core.progress import NoProgress, TerminalProgress
from qinfer.core.session import open_engine, select
from qinfer.core.types import RunConfig

if TYPE_CHECKING:
    from types import TracebackType

    from qinfer.core.outputs import Delta, RequestOutput

Messages = Sequence[Mapping[str, str]]
Prompt = str | Messages
"""A raw text, or a conversation to be put through the chat template."""


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A queued prompt: its request id, its text and tokens, and its parameters with defaults
    filled in.
    """

    request: int
    prompt: str
    token_ids: tuple[int, ...]
    params: SamplingParams


class LLM:
    """A model with its engine. Use it as a context manager, or call ``close``.

    model: a folder, a hub id ``org/name[@revision]``, or None for the demo checkpoint.
    plugin, quant, backend, observers: names, aliases or ``dist:name``; without ``plugin`` and with
    ``quant`` auto the checkpoint's config.json decides, and ``backend`` auto is dynamic. An
    exported folder has decided all three. dtype: auto (the checkpoint's), bfloat16,
    float16, float32. threads: 0 for one per usable processor. kv_cache_memory: bytes, 0 for a
    share of the free memory. kv_cache_dtype: auto (the scheme's), int8 or fp8.
    max_model_len: tokens, 0 for the model's own context or as much of it as fits.
    max_num_seqs, max_batch_tokens: the most sequences, and tokens in a step, 0 for 64 and 512 on a
    CPU, 256 and 8,192 on a GPU.
    require_kernels: fail rather than use the slow reference operators. random_weights: draw them,
    ``model`` being a folder with all the rest. progress: report on stderr.

    ``tokenizer``, ``label`` (what is loaded), ``plugin`` and ``quant`` (the plugins that read it),
    ``load_stats``, ``header`` (the plugins' lines for it) and ``max_model_len`` describe what was
    opened, ``loaded`` in full. Raises the errors of ``qinfer.core.errors``; names are checked
    before anything is loaded.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        plugin: str | None = None,
        quant: str = "auto",
        backend: str = "auto",
        observers: Sequence[str] = (),
        device: str = "auto",
        dtype: str = "auto",
        threads: int = 0,
        kv_cache_memory: int = 0,
        kv_cache_dtype: str = "auto",
        max_model_len: int = 0,
        max_num_seqs: int = 0,
        max_batch_tokens: int = 0,
        require_kernels: bool = False,
        random_weights: bool = False,
        progress: bool = False,
    ) -> None:
        run = RunConfig(
            model=model or "",
            plugin=plugin or "",
            quant=quant,
            backend=backend,
            observers=tuple(observers),
            device=device,
            dtype=dtype,
            threads=threads,
            kv_cache_memory=kv_cache_memory,
            kv_cache_dtype=kv_cache_dtype,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_batch_tokens=max_batch_tokens,
            require_kernels=require_kernels,
            random_weights=random_weights,
        )
        selected = select(run)
        opened = open_engine(run, selected, TerminalProgress() if progress else NoProgress())
        self.engine, self.tokenizer, self.label = opened.engine, opened.tokenizer, opened.label
        self.plugin, self.quant = opened.loaded.run.plugin, opened.loaded.run.quant
        self.max_model_len = opened.engine.limits.max_model_len
        self.load_stats, self.header = opened.loaded.stats, opened.header
        self.loaded = opened.loaded
        self._inbox: dict[int, list[Delta]] = {}

    def chat_text(self, messages: Messages) -> str:
        """The prompt of a conversation: by the checkpoint's template, else by the model plugin,
        else ChatML. Raises BadInput for bad messages or a template that fails.
        """
        from qinfer.core.text.chat import chatml, check_messages, render_chat

        checked = check_messages(list(messages))
        tokenizer = self.tokenizer
        if tokenizer.chat_template is not None:
            return render_chat(
                tokenizer.chat_template,
                checked,
                bos_token=tokenizer.bos_token,
                eos_token=tokenizer.eos_token,
            )
        own = self.loaded.hooks.chat_prompt(self.loaded.config, checked)
        return chatml(checked) if own is None else own

    def generate(
        self,
        prompts: str | Sequence[str],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Complete raw texts (no chat template), in the order given.

        ``params``: one for all, or one for each. Raises the first prompt's error, if any.
        """
        return self._all([prompts] if isinstance(prompts, str) else list(prompts), params)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several, in the order given."""
        single = not messages or isinstance(messages[0], Mapping)
        conversations: Any = [messages] if single else list(messages)
        return self._all(conversations, params)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Delta]:
        """Answer a raw text or a conversation, giving each piece as it comes.

        Closing the iterator early drops the request. Several may be read by turns.
        """
        submitted = self.submit(prompt, params)
        unfinished = submitted.params.n
        try:
            while unfinished:
                for delta in self.collect(submitted.request):
                    unfinished -= delta.finish_reason is not None
                    yield delta
        finally:
            self.drop(submitted.request)

    def as_completed(
        self,
        prompts: Iterable[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Iterator[tuple[int, RequestOutput | BadInput | UsageError]]:
        """Answer many prompts together, giving each with its place as it finishes.

        A prompt that cannot run gives its error instead. Prompts are taken as there is room for
        them, so ``prompts`` may be a generator; closing the iterator drops the rest.
        """
        from qinfer.core.gather import as_completed

        return as_completed(self, prompts, params)

    def submit(self, prompt: Prompt, params: SamplingParams | None = None) -> Submitted:
        """Queue a prompt. Raises BadInput or InvalidParams. ``drop`` must follow in the end."""
        text = prompt if isinstance(prompt, str) else self.chat_text(prompt)
        if not text.strip():
            raise BadInput("the prompt is empty", remedy="Give some text to answer.")
        # A template writes the special tokens it wants; a raw text gets the tokenizer's own.
        ids = self.tokenizer.encode(text, add_special_tokens=isinstance(prompt, str))
        filled = (params or SamplingParams()).with_defaults(self.loaded.generation)
        request = self.engine.add(ids, filled)
        self._inbox[request] = []
        return Submitted(request=request, prompt=text, token_ids=tuple(ids), params=filled)

    def collect(self, request: int) -> list[Delta]:
        """What a request has gained; runs a step, which serves all requests, if that is
        nothing.
        """
        if not self._inbox[request]:
            for owner, delta in self.engine.step():
                self._inbox[owner].append(delta)
        gained, self._inbox[request] = self._inbox[request], []
        return gained

    def drop(self, request: int) -> None:
        """Forget a request, finished or not."""
        self.engine.abort(request)
        self._inbox.pop(request, None)

    def close(self) -> None:
        """Drop all requests and free the model."""
        self.engine.close()
        self._inbox.clear()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _all(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[RequestOutput]:
        outputs: dict[int, RequestOutput] = {}
        for place, result in self.as_completed(prompts, params):
            if isinstance(result, QinferError):
                raise result
            outputs[place] = result
        return [outputs[place] for place in range(len(prompts))]
