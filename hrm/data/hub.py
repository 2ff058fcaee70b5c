"""Files of data sets and models on the Hugging Face hub."""

import logging
from pathlib import Path
from typing import Literal

from hrm.errors import InputError


def hub_file(repo: str, filename: str, repo_type: Literal["dataset", "model"] = "dataset") -> Path:
    """Download ``filename`` of ``repo`` (``owner/name``), or find it in the hub's cache.

    Raises:
        InputError: no such repository or file, no access, or the hub cannot be reached and the cache has no copy.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # each of five retries would print a warning
    what = f"hub {repo_type} {repo}"
    try:
        return Path(hf_hub_download(repo, filename, repo_type=repo_type))
    except HFValidationError:
        raise InputError(f"'{repo}' is not a hub name; expected owner/name") from None
    except GatedRepoError:
        raise InputError(f"{what} requires permission; log in with 'hf auth login' and accept its terms") from None
    except RepositoryNotFoundError:
        raise InputError(
            f"{what} does not exist or is private; check the name, or log in with 'hf auth login'"
        ) from None
    except LocalEntryNotFoundError:
        raise InputError(
            f"{what} cannot be reached and {filename} is not in the cache; go online, or use local files"
        ) from None
    except EntryNotFoundError:
        raise InputError(f"{what} has no file {filename}; check the name") from None
    except Exception as error:
        if (reason := reason_of(error)) is None:
            raise
        raise InputError(f"{what}: cannot download {filename} ({reason}); try again, or use local files") from None


def reason_of(error: Exception) -> str | None:
    """The first line of an error of the hub or the network; None for a bug.

    The hub's client lets errors of several HTTP libraries through.
    """
    libraries = ("httpx", "httpcore", "requests", "huggingface_hub")
    if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in libraries:
        return None
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
