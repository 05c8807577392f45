"""Whether the visitor of a page may change something."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import panel as pn

# By which an address names the session of a page, for Bokeh's server and for bokeh-fastapi. Who sends an admin there
# knows the name as well, and can be in that session, too.
NAMES_SESSION = {"bokeh-session-id", "bokeh_session_id"}


def any_name(basic_auth: Any) -> bool:
    """Whether ``--basic-auth``, of this value, has one password for all, with which anybody may give any name."""
    # Where there is none Panel's option has the name of the OAuth provider.
    return isinstance(basic_auth, str) and basic_auth != pn.config.oauth_provider and not Path(basic_auth).is_file()


def refusal(admins: Collection[str], user: str | None = None) -> str:
    """
    Why the visitor of this session may change nothing; ``""`` where he may, as one of `admins`.

    It is asked anew for each change: what a browser sends says nothing of who sends it.

    Parameters
    ----------
    admins : collection of str
    user : str, optional
        Who that is, where somebody else than Panel knows it.
    """
    if not admins:
        return "Changes are off: ps.config.admins names nobody."
    if not NAMES_SESSION.isdisjoint(pn.state.session_args):
        return "Changes are off: the address of this page names its session, which others may be in, too."
    if user is not None:
        return _refusal_of(user, admins)
    servers = [each.get("basic_auth") for each in pn.state._server_config.values()]
    if any(map(any_name, [pn.config.basic_auth, *servers])):
        return (
            "Changes are off: all users share one password, so that each may give any name. Let --basic-auth name a "
            "file of users."
        )
    user = pn.state.user
    if user is None:
        return "Changes are off: you are not logged in."
    return _refusal_of(user, admins)


def _refusal_of(user: str, admins: Collection[str]) -> str:
    return "" if user in admins else f"Changes are off: user {user!r} is none of ps.config.admins."
