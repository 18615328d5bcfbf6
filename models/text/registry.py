"""Every text encoder by name: a function that learns one from a catalog's texts and gives the half that serves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from models.errors import InvalidOption
from models.folder import Folder
from models.progress import Progress
from retrieval.text import TextEncoder


@dataclass(frozen=True)
class TextOptions:
    """What the text encoders can be told; 0 leaves a number to the encoder.

    Attributes:
        text_dir: the directory of a checkpoint, for the encoders that read one.
        text_width: D, the length of a vector.
        text_tokens: longest text in tokens.
        text_layers: blocks of a transformer that is trained here.
        text_vocabulary: pieces of its vocabulary.
        text_epochs: passes over the catalog's texts.
    """

    text_dir: str = ""
    text_width: int = 0
    text_tokens: int = 128
    text_layers: int = 2
    text_vocabulary: int = 4096
    text_epochs: int = 5

    def __post_init__(self) -> None:
        """Raises `InvalidOption` where a value is out of its range."""
        for name, least in {"text_width": 0, "text_tokens": 2, "text_layers": 1, "text_epochs": 1}.items():
            if getattr(self, name) < least:
                raise InvalidOption(f"{name} {getattr(self, name)} must be at least {least}")
        if self.text_vocabulary < 300:
            raise InvalidOption(f"text_vocabulary {self.text_vocabulary} must be at least 300; 256 bytes are in it")


class TextProvider(Protocol):
    """Learns or loads an encoder."""

    def __call__(self, texts: Sequence[str], options: TextOptions, *, seed: int, progress: Progress) -> TextEncoder:
        """The encoder, as a bundle would carry it.

        Args:
            texts: what it will be asked about, none of them empty.
        """
        ...


PROVIDERS: Folder[TextProvider] = Folder("models.text", "text encoder")
