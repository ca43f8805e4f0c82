"""A model's tokenizer and chat template, for the engines that run the model themselves."""

from typing import Any

from dmsrec_jax.errors import InputError
from llm_stage.engines.weights import Weights
from llm_stage.prompts import Chat


class ChatTokenizer:
    """Prompts to token ids."""

    def __init__(self, weights: Weights) -> None:
        """Loads the tokenizer.

        Raises:
          InputError: there is none, or it has no chat template.
        """
        from transformers import AutoTokenizer

        gguf: dict[str, Any] = {"gguf_file": weights.gguf} if weights.gguf else {}
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                weights.source, revision=weights.hub_revision, trust_remote_code=False, **gguf
            )
        except Exception as error:  # transformers raises many kinds
            raise InputError(f"--model {weights.source}: no tokenizer: {error}") from None
        self.name = weights.source

    def text(self, chat: Chat) -> str:
        """The prompt as the model sees it, up to where its answer begins."""
        if self.tokenizer.chat_template is None:
            raise InputError(f"--model {self.name}: has no chat template; --decode score needs none")
        try:
            return self.tokenizer.apply_chat_template(messages(chat), tokenize=False, add_generation_prompt=True)
        except Exception as error:  # jinja raises what the template says
            raise InputError(f"--model {self.name}: its chat template refuses the prompt: {error}") from None

    def ids(self, prompt: Chat | str, *, start: bool = True) -> list[int]:
        """Token ids of a chat, or of plain text (with the model's mark of a beginning, if ``start``)."""
        if isinstance(prompt, Chat):
            return self.tokenizer(self.text(prompt), add_special_tokens=False)["input_ids"]
        return self.tokenizer(prompt, add_special_tokens=start)["input_ids"]

    def preview(self, prompt: Chat | str) -> tuple[str, int]:
        """The prompt as the model sees it, and its tokens."""
        return self.text(prompt) if isinstance(prompt, Chat) else prompt, len(self.ids(prompt))


def messages(chat: Chat) -> list[dict[str, str]]:
    """A chat as the messages of the OpenAI convention."""
    system = [{"role": "system", "content": chat.system}] if chat.system else []
    return [*system, {"role": "user", "content": chat.user}]
