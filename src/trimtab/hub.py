"""Whether the Hugging Face hub can be reached."""

from functools import cache
from pathlib import Path
from ssl import SSLError
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

SECONDS_TO_ANSWER = 5.0


@cache
def hub_answers() -> bool:
    """Asks once and briefly: without a network the hub's own client tries for a minute at each file."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=SECONDS_TO_ANSWER).close()
    except URLError as error:  # an answer that is an error is an answer, and so is a refused certificate
        return isinstance(error, HTTPError) or isinstance(error.reason, SSLError)
    except OSError:
        return False
    return True


def only_local(name: str) -> bool:
    """Whether a name is looked for on this machine only: a folder, or a download where no hub answers."""
    return Path(name).exists() or not hub_answers()
