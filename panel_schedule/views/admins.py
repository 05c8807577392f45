"""Whether the visitor of a page may change something."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import panel as pn


def any_name(basic_auth: Any) -> bool:
    """Whether ``--basic-auth``, of this value, has one password for all, with which anybody may give any name."""
    # Where there is none Panel's option has the name of the OAuth provider.
    return isinstance(basic_auth, str) and basic_auth != pn.config.oauth_provider and not Path(basic_auth).is_file()


def refusal(admins: Collection[str]) -> str:
    """
    Why the visitor of this session may change nothing; ``""`` where he may, as one of `admins`.

    It is asked anew for each change: what a browser sends says nothing of who sends it.
    """
    if not admins:
        return "Changes are off: ps.config.admins names nobody."
    servers = [each.get("basic_auth") for each in pn.state._server_config.values()]
    if any(map(any_name, [pn.config.basic_auth, *servers])):
        return (
            "Changes are off: all users share one password, so that each may give any name. Let --basic-auth name a "
            "file of users."
        )
    user = pn.state.user
    if user is None:
        return "Changes are off: you are not logged in."
    return "" if user in admins else f"Changes are off: user {user!r} is none of ps.config.admins."
