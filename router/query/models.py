"""The models that are served, by name: what belongs to each, and which of them a request means."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from tokenizers import Tokenizer

from router.query.prompts import TextPrompts, shorten
from xgr_runtime.catalog import Catalogs
from xgr_runtime.errors import BadRequest, UnknownModel
from xgr_runtime.prompts import Prompts
from xgr_runtime.wire.messages import Limits


@dataclass(frozen=True, eq=False)
class Model:
    """A checkpoint that is served: how its texts become tokens, what it ranks, what its workers can do."""

    name: str
    path: str  # of the checkpoint
    tokenizer: Tokenizer
    prompts: Prompts
    vocab_size: int
    catalogs: Catalogs
    limits: Callable[[], Limits | None]  # see `Dispatch.limits`

    @cached_property
    def texts(self) -> TextPrompts:
        return TextPrompts(self.tokenizer, self.prompts.bytes_per_token)


class Models:
    """At least one."""

    def __init__(self, models: Sequence[Model]) -> None:
        self._by_name = {model.name: model for model in models}

    def __iter__(self) -> Iterator[Model]:
        return iter(self._by_name.values())

    @property
    def names(self) -> list[str]:
        return list(self._by_name)

    @property
    def default(self) -> Model:
        """Of routes that name none, and of the router's own requests."""
        return next(iter(self))

    def named(self, name: str | None) -> Model:
        """The model that a request means; where there is one, it needs no name.

        Raises `UnknownModel`, and `BadRequest` where several are served and none is named.
        """
        names = ", ".join(self.names)
        if name is None:
            if len(self._by_name) > 1:
                raise BadRequest(f"no model is named, and several are served: send one of {names}", "model")
            return self.default
        if name not in self._by_name:
            raise UnknownModel(f"model is {shorten(name)}, served here: {names}: send one of these", "model")
        return self._by_name[name]
