"""A bundle on stock ONNX Runtime, without the binary: the loop over its state, for anyone who writes their own."""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, overload

import numpy
import onnxruntime
from tokenizers import Tokenizer

TOKENS, MASK, POSITIONS, LOGITS = "input_ids", "attention_mask", "position_ids", "logits"
PAST, PRESENT = "past_key_values", "present"
DTYPES = {"tensor(float)": numpy.float32, "tensor(float16)": numpy.float16}


Choose = Callable[[numpy.ndarray], int]


def likeliest(logits: numpy.ndarray) -> int:
    """The token of the highest logit, of f32 `[vocab]`."""
    return int(logits.argmax())


class BundleError(ValueError):
    """What was given is no bundle, or one that does not generate."""


class Bundle:
    """A directory that `dijiang convert` wrote.

    `state` has what the model remembers of the tokens fed so far, an array by the name of each `past` input, and does
    not grow unless layers stayed softmax. A copy of it, put back later together with `length`, goes on from there.
    """

    def __init__(self, path: str | Path, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        self.path = Path(path)
        try:
            self.manifest = json.loads((self.path / "dijiang.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise BundleError(f"{self.path}: no bundle: {error}; `dijiang convert MODEL -o BUNDLE` makes one") from error
        if self.manifest["dtype"] == "bf16":
            raise BundleError(f"{self.path}: it is bf16, which NumPy does not know; convert with --dtype f32 or f16")
        unknown = set(providers) - set(onnxruntime.get_available_providers())
        if isinstance(providers, str) or unknown:
            available = ", ".join(onnxruntime.get_available_providers())
            raise BundleError(f"providers={providers!r}: expected a list of those that this onnxruntime has: {available}")
        self._session = onnxruntime.InferenceSession(str(self.path / "model.onnx"), providers=list(providers))
        self._inputs = {io.name: io for io in self._session.get_inputs()}
        self._outputs = [io.name for io in self._session.get_outputs()]
        if TOKENS not in self._inputs or LOGITS not in self._outputs:
            raise BundleError(f"{self.path}: model.onnx has no {TOKENS} or no {LOGITS}, and generates nothing")
        self.eos: set[int] = set(self.manifest["model"]["eos"])
        self.state: dict[str, numpy.ndarray] = {}
        self.length = 0
        self.reset()

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        file = self.path / "tokenizer.json"
        if not file.is_file():
            raise BundleError(f"{file}: there is no tokenizer; give token ids in place of a text")
        return Tokenizer.from_file(str(file))

    def reset(self) -> None:
        """Forgets every token."""
        self.state = {name: self._empty(name) for name in self._inputs if name.startswith(PAST)}
        self.length = 0

    def _empty(self, name: str) -> numpy.ndarray:
        io = self._inputs[name]
        # One row; a dimension that is a name is that of a cache, which begins empty.
        shape = [1] + [dim if isinstance(dim, int) else 0 for dim in io.shape[1:]]
        return numpy.zeros(shape, DTYPES[io.type])

    def feed(self, tokens: Sequence[int]) -> numpy.ndarray:
        """Logits after each of these tokens, f32 `[tokens, vocab]`, which come after all that was fed before."""
        ids, vocab = numpy.asarray(tokens), self.manifest["model"]["vocab"]
        if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
            raise BundleError(f"{self.path}: expected a list of token ids, at least one, or a text of one token or more")
        ids = ids.astype(numpy.int64)[None]
        # The vocabulary of a graph may not be known.
        if vocab and not 0 <= ids.min() <= ids.max() < vocab:
            raise BundleError(f"{self.path}: the model knows the tokens 0 to {vocab - 1}; {ids.min()} to {ids.max()} were given")
        most = self.manifest["model"].get("positions")
        if most and self.length + ids.shape[1] > most:
            raise BundleError(f"{self.path}: {self.length} tokens and {ids.shape[1]} more; the model has {most} positions")
        feeds = {TOKENS: ids, **self.state}
        if MASK in self._inputs:
            # A growing cache is masked whole, a state of constant size by the tokens of the call alone.
            covers_past = self._inputs[MASK].shape[1] != self._inputs[TOKENS].shape[1]
            feeds[MASK] = numpy.ones((1, len(tokens) + (self.length if covers_past else 0)), dtype=numpy.int64)
        if POSITIONS in self._inputs:
            feeds[POSITIONS] = numpy.arange(self.length, self.length + len(tokens), dtype=numpy.int64)[None]
        found = dict(zip(self._outputs, self._session.run(None, feeds), strict=True))
        self.state = {name: found[PRESENT + name.removeprefix(PAST)] for name in self.state}
        self.length += len(tokens)
        return found[LOGITS][0].astype(numpy.float32)

    @overload
    def generate(
        self, prompt: str | Sequence[int], new: int = ..., *, stream: Literal[True], choose: Choose = ...
    ) -> Iterator[str | int]: ...
    @overload
    def generate(
        self, prompt: str | Sequence[int], new: int = ..., *, stream: Literal[False] = ..., choose: Choose = ...
    ) -> str | list[int]: ...
    def generate(self, prompt, new=64, *, stream=False, choose=likeliest):
        """Continues a text, or a list of token ids, up to `new` tokens or an end token.

        Gives what comes after the prompt, in the prompt's kind; with `stream` piece by piece as it comes. `choose` takes the
        logits, f32 `[vocab]`, and gives the next token. The state goes on from what was fed before: `reset()` begins anew.
        """
        next_tokens = self._tokens(self.tokenizer.encode(prompt).ids if isinstance(prompt, str) else prompt, new, choose)
        pieces = self._texts(next_tokens) if isinstance(prompt, str) else next_tokens
        if stream:
            return pieces
        found = list(pieces)
        return "".join(found) if isinstance(prompt, str) else found

    def _tokens(self, prompt: Sequence[int], new: int, choose: Choose) -> Iterator[int]:
        if new < 0:
            raise BundleError(f"{new} new tokens were asked for; ask for none or more")
        logits = self.feed(prompt)[-1]
        for _ in range(new):
            token = choose(logits)
            if token in self.eos:
                return
            # Before it is given: what was given is in the state, wherever the caller stops.
            logits = self.feed([token])[-1]
            yield token

    def _texts(self, next_tokens: Iterator[int]) -> Iterator[str]:
        tokenizer, tokens, shown = self.tokenizer, [], ""
        for token in next_tokens:
            tokens.append(token)
            text = tokenizer.decode(tokens)
            # A character of several tokens is shown once it is whole.
            if not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text
        rest = tokenizer.decode(tokens)[len(shown) :]
        if rest:
            yield rest
