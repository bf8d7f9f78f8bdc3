"""Keep another library from installing, downloading or starting anything."""

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import transformers
from huggingface_hub import constants

# everything in `subprocess` and `os.popen` goes through the first
STARTERS = ((subprocess.Popen, "__init__"), (os, "system"), (os, "posix_spawn"), (os, "posix_spawnp"))
# preprocessors of images and sound: TransformerLens gets them for multimodal models, and installs what they lack
PREPROCESSORS = (transformers.AutoProcessor, transformers.AutoFeatureExtractor, transformers.AutoImageProcessor)


@contextlib.contextmanager
def sealed(what: str) -> Iterator[None]:
    """Inside, no process can be started, nothing is fetched from a hub, and no preprocessor is loaded.

    Processes are refused in the calling thread only: what other threads do is no business of ours.

    Args:
        what: What is going on, for the message.

    Raises:
        RuntimeError: Something tried to start a process, whether or not it was told that it could not.
    """
    refused: list[str] = []
    with contextlib.ExitStack() as stack:
        for owner, name in STARTERS:
            if hasattr(owner, name):  # Windows lacks some
                stack.enter_context(mock.patch.object(owner, name, _refusing(getattr(owner, name), what, refused)))
        for loader in PREPROCESSORS:
            stack.enter_context(mock.patch.object(loader, "from_pretrained", lambda *args, **kwargs: None))
        stack.enter_context(mock.patch.object(constants, "HF_HUB_OFFLINE", True))
        yield
    if refused:
        raise RuntimeError(refused[0])


def _refusing(start: Callable[..., Any], what: str, refused: list[str]) -> Callable[..., Any]:
    """A function in the place of one that starts a process."""
    thread = threading.get_ident()

    def refuse(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return start(*args, **kwargs)
        given = kwargs.get("args", next((each for each in args if isinstance(each, str | list | tuple)), args))
        command = given if isinstance(given, str) else " ".join(map(str, given))
        refused.append(
            f"{what} tried to start {command!r}, which was not let run: lsn_lens installs and starts nothing that "
            "nobody asked for. Do it yourself where it is wanted, and load again."
        )
        raise RuntimeError(refused[-1])

    return refuse
