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

# all functions of `subprocess` and `os.popen` call the first
STARTERS = ((subprocess.Popen, "__init__"), (os, "system"), (os, "posix_spawn"), (os, "posix_spawnp"))
# preprocessors of images and sound: TransformerLens loads them for multimodal models, and installs their packages
PREPROCESSORS = (transformers.AutoProcessor, transformers.AutoFeatureExtractor, transformers.AutoImageProcessor)


@contextlib.contextmanager
def sealed(what: str) -> Iterator[None]:
    """Prevent starting processes, fetching from a hub, and loading preprocessors inside the block.

    Processes are refused in the calling thread only.

    Args:
        what: The current operation, for the message.

    Raises:
        RuntimeError: A process was to be started, even if the caller ignored the refusal.
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
    """A function that replaces one that starts a process, and refuses."""
    thread = threading.get_ident()

    def refuse(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return start(*args, **kwargs)
        given = kwargs.get("args", next((each for each in args if isinstance(each, str | list | tuple)), args))
        command = given if isinstance(given, str) else " ".join(map(str, given))
        refused.append(
            f"{what} tried to start {command!r}, which was refused: lsn_lens never installs or starts other "
            "programs. Run the command yourself if you want it, and load again."
        )
        raise RuntimeError(refused[-1])

    return refuse
