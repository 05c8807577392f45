"""What becomes of jobs, and of pages, when something goes wrong with a store that replicas share (14, 17)."""

from __future__ import annotations

import os
import signal
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from faults import CHANGE, LONG, MakeServer, Site, eventually
from panel_schedule.errors import ValueUnreadable
from proxy import Proxy
from redis_server import RedisServer, free_port
from servers import Serve

# ------------------------------------------------------------ jobs


def test_a_job_that_was_refused_is_not_done_later(site: Site, proxy: Proxy) -> None:
    """The server has it, and nobody could say so: it ends as soon as that is known."""
    one, other = site.replica(proxy, busy=False), site.replica(busy=False)
    site.go("job 1")
    proxy.lose = CHANGE
    assert "" == one("replica.try_to_submit('thread')")
    [id] = site.jobs()
    proxy.lose = b""
    eventually(lambda: site.jobs() == {id: "failed"})
    one.kill()
    other("replica.jobs['thread'].submit(folder).result(10)")
    assert [] == site.journal("began", run=id)


def test_a_job_whose_takeover_nobody_could_tell_is_done(site: Site, proxy: Proxy) -> None:
    """Who has it, and was not told so, does it."""
    one, other = site.replica(busy=False), site.replica(proxy, busy=False)
    id = one("replica.submit('thread')")
    eventually(lambda: site.journal("began", run=id))
    one.kill()
    proxy.lose = CHANGE
    with closing(site.opened()) as store:
        eventually(lambda: store.records.read("run", id).state.fence == 2)
    proxy.lose = b""
    eventually(lambda: site.journal("began", run=id, attempt=2))
    site.go("job 2")
    eventually(lambda: other(f"replica.state('thread', {id!r})") == "succeeded")
    site.end()
    site.assert_one_end("in a thread", id, "succeeded", 2)


def test_a_result_that_the_server_never_takes_holds_up_nothing(site: Site) -> None:
    """Its job has succeeded, for who waits for it there; others are told that it is lost."""
    one, other = site.replicas_run(2)
    site.server.refuse()
    id = one("replica.submit_huge()")
    eventually(lambda: other(f"replica.state('huge', {id!r})") == "succeeded")
    assert "succeeded" == one(f"replica.state('huge', {id!r})")
    with pytest.raises(ValueUnreadable, match=r"Job 'huge job': its value is lost. Submit it again"):
        other(f"replica.run('huge', {id!r}).result(10)")
    site.await_values()
    site.end()
    site.assert_sound()
    site.assert_one_end("huge job", id, "succeeded", 1)


def test_a_worker_process_that_is_killed_in_mid_job(site: Site) -> None:
    """Its job is tried again, and has one end, which all see."""
    one, other = (site.replica(busy=False, lease=LONG) for _ in range(2))
    id = one("replica.submit('process')")
    [began] = eventually(lambda: site.journal("began", run=id))
    os.kill(began["pid"], signal.SIGKILL)
    eventually(lambda: site.journal("began", run=id, attempt=2))
    site.go("job 2")
    for each in (one, other):
        eventually(lambda each=each: each(f"replica.state('process', {id!r})") == "succeeded")
    site.end()
    site.assert_one_end("in a process", id, "succeeded", 2)


def test_a_replica_that_is_killed_in_mid_job(site: Site) -> None:
    """Another one does it within the lease."""
    one, other = site.replica(busy=False), site.replica(busy=False)
    id = one("replica.submit('thread')")
    eventually(lambda: site.journal("began", run=id))
    killed = time.monotonic()
    one.kill()
    eventually(lambda: site.journal("began", run=id, attempt=2))
    print(f"it was taken over after {time.monotonic() - killed:.2f} s")
    site.go("job 2")
    eventually(lambda: other(f"replica.state('thread', {id!r})") == "succeeded")
    site.end()
    site.assert_one_end("in a thread", id, "succeeded", 2)


def test_a_job_of_a_replica_that_stood_still_longer_than_its_lease(site: Site) -> None:
    """Another one does it; what comes of it too late is dropped, and it has one end."""
    one, other = site.replica(busy=False), site.replica(busy=False)
    id = one("replica.submit('thread')")
    eventually(lambda: site.journal("began", run=id))
    one.signal(signal.SIGSTOP)
    eventually(lambda: site.journal("began", run=id, attempt=2))
    site.go("job 1")
    one.signal(signal.SIGCONT)
    eventually(lambda: one(f"replica.state('thread', {id!r})") == "cancelled")
    assert "running" == other(f"replica.state('thread', {id!r})")
    site.go("job 2")
    eventually(lambda: other(f"replica.state('thread', {id!r})") == "succeeded")
    site.end()
    site.assert_one_end("in a thread", id, "succeeded", 2)


def test_a_job_that_ends_while_the_server_is_gone(site: Site) -> None:
    """Its result is stored when it is back."""
    one, other = (site.replica(busy=False, lease=LONG) for _ in range(2))
    id = one("replica.submit('thread')")
    eventually(lambda: site.journal("began", run=id))
    site.server.kill()
    site.go("job 1")
    eventually(lambda: "its result cannot be stored now" in site.log())
    site.server.start()
    eventually(lambda: other(f"replica.state('thread', {id!r})") == "succeeded")
    site.end()
    site.assert_one_end("in a thread", id, "succeeded", 1)


def test_a_job_whose_end_the_server_has_lost(site: Site, proxy: Proxy, new_server: MakeServer) -> None:
    """As another one is there in its place, which lags behind: who has ended it says so again."""
    one, other = site.replica(proxy, busy=False), site.replica(proxy, busy=False)
    id = one("replica.submit('thread')")
    eventually(lambda: site.journal("began", run=id))
    site.server, former = new_server(of=site.server), site.server
    site.go("job 1")
    eventually(lambda: other(f"replica.state('thread', {id!r})") == "succeeded")
    assert site.jobs()[id] in ("queued", "running")
    proxy.to = site.server.port
    proxy.drop()
    former.kill()
    eventually(lambda: site.jobs() == {id: "succeeded"})
    assert "done" == other(f"replica.run('thread', {id!r}).result(10)")
    site.end()
    site.assert_one_end("in a thread", id, "succeeded", 1)


# ------------------------------------------------------------ a real server

APP = {
    "app.py": """
        import panel as pn
        from tasks import sales
        pn.pane.Str(f"sold {sales()}").servable()
    """,
    "tasks.py": """
        import panel_schedule as ps

        @ps.schedule(period="200ms")
        def sales():
            return 42
    """,
}


def test_pages_do_not_wait_for_a_slow_store(site: Site, proxy: Proxy, serve: Serve) -> None:
    """With 200 ms a call."""
    server = serve("app.py --setup tasks.py", APP, env={"PANEL_SCHEDULE_STORE": site.server.through(proxy)})
    page = f"{server.url}/app"
    httpx.get(page)  # the first one imports a lot
    proxy.delay = 0.2
    took = sorted(httpx.get(page).raise_for_status().elapsed.total_seconds() for _ in range(9))
    proxy.delay = 0.0
    print(f"a page came within {took[4] * 1e3:.0f} ms, {took[-1] * 1e3:.0f} at most")
    assert took[4] < 0.2


def test_a_store_that_cannot_be_used_ends_a_server_with_one_line(
    redis_server: RedisServer, serve: Serve, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Exit 1, and no password in it."""
    locked = RedisServer(tmp_path, "--requirepass", "right")
    unreachable = f"redis://user:hidden@127.0.0.1:{free_port()}"
    (tmp_path / "without" / "redis").mkdir(parents=True)
    (tmp_path / "without" / "redis" / "__init__.py").write_text("raise ImportError('there is none')")
    cases = {
        "Start the server, or correct host and port": {"STORE": unreachable},
        "Name or service not known. Start the server, or correct host": {"STORE": "redis://no-such-host.invalid"},
        "Correct user and password": {"STORE": f"redis://:hidden@127.0.0.1:{locked.port}"},
        "Correct the number of the database": {"STORE": f"{redis_server.url}/99"},
        "pip install 'panel-schedule[redis]'": {"STORE": redis_server.url, "PYTHONPATH": f"{tmp_path / 'without'}"},
    }
    servers = {}
    request.addfinalizer(locked.stop)
    for remedy, options in cases.items():
        env = {name if name == "PYTHONPATH" else f"PANEL_SCHEDULE_{name}": value for name, value in options.items()}
        servers[remedy] = serve("app.py --setup tasks.py", APP, env=env, wait=False)
    for remedy, server in servers.items():
        assert 1 == server.wait_exit()
        said = [line for line in server.output().splitlines() if "panel-schedule" in line]
        assert 1 == len(said), server.output()
        assert remedy in said[0]
        assert "Traceback" not in server.output()
        assert "hidden" not in server.output()
