"""A published folder as a repository of the Hugging Face Hub, in one commit.

The token is that of `hf auth login` or HF_TOKEN; it goes nowhere but into the request's header.
"""

from __future__ import annotations

from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils._validators import validate_repo_id

from pocketfocus.run.errors import UserError

MESSAGE = "Files for phones, made and measured by pocketfocus"


def check_destination(name: str) -> str:
    """Return OWNER/NAME; UserError for what is none, without a token, and where the Hub is off."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--to {name} is no repository of the Hub: {error}") from None
    if name.count("/") != 1:
        raise UserError(f"--to {name} is no repository of the Hub: write OWNER/NAME")
    if constants.is_offline_mode():
        raise UserError("HF_HUB_OFFLINE keeps this process off the Hub: unset it to use --to")
    if not get_token():
        raise UserError(
            "no token for the Hub: `hf auth login` keeps one, or set HF_TOKEN to one that may write"
        )
    return name


def upload(folder: Path, name: str, private: bool) -> str:
    """Upload a folder and return its address; UserError, without the token, when it fails."""
    api = HfApi()
    try:
        api.create_repo(name, private=private or None, exist_ok=True)
        done = api.upload_folder(repo_id=name, folder_path=folder, commit_message=MESSAGE)
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx2.HTTPError, ValueError, OSError) as error:
        raise UserError(
            f"{name} was not uploaded to {api.endpoint}: {without_token(error)}; "
            f"{folder} is whole, and nothing half-written is on the Hub: run it again"
        ) from None
    return str(done.repo_url)


def without_token(error: Exception) -> str:
    """Return what an error says in one line, the token struck out if it should be in it."""
    said = " ".join(str(error).split()) or type(error).__name__
    token = get_token()
    return said.replace(token, "[token]") if token else said
