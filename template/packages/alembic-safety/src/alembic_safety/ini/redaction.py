"""Recognition of secrets, and text without them."""

import re

_SECRET_OPTION = re.compile(r"(url|uri|dsn|password|passwd|secret|token)$")


def hide_passwords(text: str) -> str:
    """Replace the passwords of URLs by asterisks."""
    text = re.sub(r"(://[^/\s:@'\"]*):[^\s/'\"]*@", r"\1:***@", text)
    return re.sub(r"([?&]password=)[^&\s'\"]+", r"\1***", text)


def is_secret(option: str, value: str) -> bool:
    """Return whether an option's name or its value looks like a secret."""
    return _SECRET_OPTION.search(option) is not None or hide_passwords(value) != value
