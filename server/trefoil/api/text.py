"""Text as requests bring it: Unicode that a tokenizer can mean."""

from typing import Annotated

from pydantic import AfterValidator, Field


def _plain(text: str) -> str:
    """Refuse what no tokenizer can mean: the null character, and halves of surrogate pairs."""
    if "\0" in text:
        raise ValueError("must not contain the null character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode; it contains a lone surrogate") from None
    return text


Text = Annotated[str, AfterValidator(_plain)]
StopText = Annotated[Text, Field(min_length=1)]
