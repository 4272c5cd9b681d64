"""The base of every contract: immutable, strict about unknown fields, bounded strings."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
"""A name that is also a safe file name: no separators, no leading dot."""

ShortText = Annotated[str, StringConstraints(min_length=1, max_length=8_192)]
"""A question, a query, an answer: never empty, at most 8,192 characters."""


class Contract(BaseModel):
    """A message. Unknown fields are refused: a typo in a request is an error, not a silent default."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
