"""Text: everything between strings and token ids. Needs `tokenizers` and jinja2, neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import RequestError
from .mapped import MappedTokenizer
from .stream import Pieces, Stream
from .template import ChatTemplate

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["MappedTokenizer", "Stream", "Text"]


class Text:
    """The tokenizer of one model, its chat templates and its special tokens. Thread-safe.

    tokenizer    a `tokenizers.Tokenizer`, or a MappedTokenizer, which answers like one
    config       tokenizer_config.json as a dict: bos_token, eos_token, chat_template (a string, or a list of {name, template}) ...
    generation   generation_config.json as a dict: eos_token_id ...
    """

    def __init__(self, tokenizer: Tokenizer | MappedTokenizer, config: dict[str, Any] | None = None, generation: dict[str, Any] | None = None) -> None:
        self.tokenizer, self.config, self.generation = tokenizer, config or {}, generation or {}
        self._pieces = Pieces(tokenizer)
        self._templates = {name: ChatTemplate(source) for name, source in _sources(self.config.get("chat_template")).items()}
        self.special_tokens = {
            key: value for key in ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
            if (value := _content(self.config.get(key)))
        }

    @property
    def vocabulary(self) -> int:
        """Number of token ids the tokenizer knows, added tokens included."""
        return int(self.tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def bos_id(self) -> int | None:
        return self._id("bos_token")

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: those of the generation config, and the tokenizer's own."""
        named = self.generation.get("eos_token_id")
        ids = [] if named is None else list(named) if isinstance(named, (list, tuple)) else [named]
        own = self._id("eos_token")
        return tuple(dict.fromkeys([*ids, *([own] if own is not None else [])]))

    def _id(self, key: str) -> int | None:
        token = self.special_tokens.get(key)
        return self.tokenizer.token_to_id(token) if token else None

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids. `special`: with the tokens that the tokenizer puts around a text (usually a first token). Special tokens that are
        spelled out in the text are recognised either way."""
        return list(self.tokenizer.encode(text, add_special_tokens=special).ids)

    def encode_chat(self, rendered: str) -> list[int]:
        """Token ids of a rendered chat, which spells out its special tokens itself."""
        return self.encode(rendered, special=False)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of a whole sequence of tokens."""
        stream = self.stream(skip_special=skip_special)
        return "".join([stream.push(i) for i in ids]) + stream.flush()

    def stream(self, *, skip_special: bool = True, continued: bool = False) -> Stream:
        """An incremental decoder: `push(id)` gives the text that has become certain, `flush()` the rest.

        `continued`: the tokens follow others, so that a space that the tokenizer puts before a text's first word is a real one.
        """
        return Stream(self._pieces, skip_special=skip_special, continued=continued)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; special tokens as they are written. Unknown ids: none."""
        return self._pieces[token]

    @property
    def has_chat_template(self) -> bool:
        return bool(self._templates)

    def chat(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None = None, add_generation_prompt: bool = True,
             documents: Sequence[dict[str, Any]] | None = None, **kwargs: Any) -> str:
        """Messages as the prompt that the model was trained on. Encode it with `encode_chat`.

        `kwargs` reach the template (enable_thinking, date_string ...). Raises RequestError when the model has no template or the template
        refuses the messages.
        """
        if not self._templates:
            raise RequestError("this model has no chat template", param="messages", remedy="use completions with a plain prompt")
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        template = self._templates.get(name) or next(iter(self._templates.values()))
        return template.render(messages, tools=tools, documents=documents, add_generation_prompt=add_generation_prompt,
                               variables={**self.special_tokens, **kwargs})

    def prepare(self) -> None:
        """Do now what the tokenizer would do when it is first needed: for those who will encode many texts."""
        if isinstance(self.tokenizer, MappedTokenizer):
            _ = self.tokenizer.real

    def to_json(self) -> str:
        """tokenizer.json"""
        return self.tokenizer.to_str()


def _content(token: Any) -> str | None:
    """A special token is a string or a serialized AddedToken."""
    return token.get("content") if isinstance(token, dict) else token


def _sources(templates: Any) -> dict[str, str]:
    if not templates:
        return {}
    if isinstance(templates, str):
        return {"default": templates}
    if isinstance(templates, dict):
        return dict(templates)
    return {entry["name"]: entry["template"] for entry in templates}
