"""Checks a chat's turns and renders them by a checkpoint's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Messages = Sequence[Mapping[str, Any]]
"""Turns as transformers and vLLM take them: `{"role": "user", "content": "Hi"}`."""
ROLES = ("system", "user", "assistant")
UNSUPPORTED_FIELDS = (
    *("name", "tool_calls", "tool_call_id", "function_call", "tools", "refusal", "audio"),
    *("reasoning", "reasoning_content", "thinking"),
)
"""Fields of a turn that say more than its content does. A turn with one is refused, so that nothing
of it is lost; any other field is the dataset's own and not read."""
MAX_TURNS = 1000
"""To tell texts from the template's words takes a rendering a turn (`special_text`)."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat that was checked."""

    roles: tuple[str, ...]
    """Each turn's, of ROLES."""
    texts: tuple[str, ...]
    """Each turn's content."""

    @property
    def is_continued(self) -> bool:
        """Whether the answer continues the last turn, which is the assistant's."""
        return self.roles[-1] == "assistant"

    def render(self, tokenizer: Any) -> str:
        """The text that the chat template makes of the turns: up to the opened assistant's turn, or
        up to the last character of the turn that is continued.

        Raises whatever the template raises.
        """
        pairs = zip(self.roles, self.texts, strict=True)
        how: dict[str, bool] = {"add_generation_prompt": not self.is_continued}
        if self.is_continued:
            how["continue_final_message"] = True
        turns = [{"role": role, "content": text} for role, text in pairs]
        chat: str = tokenizer.apply_chat_template(turns, tokenize=False, **how)
        return chat


def chat_of(prompt: str | Messages, system_prompt: str | None = None) -> Chat:
    """The chat of a prompt: a text is a user's turn. A system prompt becomes the first turn where
    no turn has the role `system`.

    A blank last turn of the assistant is left out: it is the turn that the answer opens.
    Raises ValueError for messages that are not turns of {role, content}, and where no user speaks.
    """
    if isinstance(prompt, str):
        roles, texts = ["user"], [prompt]
    else:
        roles, texts = _checked(prompt)
    if system_prompt is not None and "system" not in roles:
        roles, texts = ["system", *roles], [system_prompt, *texts]
    return Chat(tuple(roles), tuple(texts))


def _checked(messages: Messages) -> tuple[list[str], list[str]]:
    if not messages:
        raise ValueError("the chat has no turns")
    if len(messages) > MAX_TURNS:
        raise ValueError(f"the chat has {len(messages)} turns, {MAX_TURNS} at most are read")
    turns = [_turn(number, message) for number, message in enumerate(messages, 1)]
    if turns[-1][0] == "assistant" and not turns[-1][1].strip():
        turns.pop()
    spoken = [text for role, text in turns if role == "user"]
    if not any(text.strip() for text in spoken):
        reason = "the user's turns are empty" if spoken else "the chat has no user turn"
        raise ValueError(reason)
    return [role for role, _ in turns], [text for _, text in turns]


def _turn(number: int, message: Any) -> tuple[str, str]:
    """A message's role and content."""
    if not isinstance(message, Mapping):
        found = "null" if message is None else f"a {type(message).__name__}"
        raise ValueError(f"turn {number} is {found}; expected {{role, content}}")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        found = "no role" if role is None else f"the role {short(role)}"
        raise ValueError(f"turn {number} has {found}; expected {', '.join(ROLES)}")
    for name in UNSUPPORTED_FIELDS:
        if message.get(name) not in (None, "", [], {}):
            raise ValueError(
                f"turn {number} has {name}, which prompts cannot hold; drop the field, or write "
                "what it says into the content"
            )
    if not isinstance(content, str):
        found = "no content" if content is None else f"a {type(content).__name__} as its content"
        raise ValueError(f"turn {number} has {found}; expected text")
    return role, content


def short(value: object) -> str:
    """The value in quotes, cut where it is long."""
    text = str(value)
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
