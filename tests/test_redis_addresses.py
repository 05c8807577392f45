"""The ways to name a Redis server: by Sentinel, as a cluster, with TLS."""

from __future__ import annotations

import re
import subprocess
from contextlib import contextmanager

import numpy as np
import pytest

from panel_schedule.config import Config, sentinels_of
from panel_schedule.coordination.tasks import USER
from panel_schedule.errors import ConfigError, StoreError
from panel_schedule.runtime import Runtime
from panel_schedule.stores.redis import RedisStore
from panel_schedule.testing.contracts.records import Heard
from panel_schedule.testing.contracts.tools import START, put
from redis_server import PATIENCE, PROGRAM, free_port
from servers import eventually

redis = pytest.importorskip("redis", reason="needs the package redis")


@contextmanager
def sentinel(folder, master):
    """What watches over a server, on a port of its own."""
    folder.mkdir()
    port, file = free_port(), folder / "sentinel.conf"
    file.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {folder}\nsentinel monitor main 127.0.0.1 {master} 1\n"
        "sentinel down-after-milliseconds main 300\nsentinel failover-timeout main 3000\n"
    )
    process = subprocess.Popen([PROGRAM, file, "--sentinel"], stdout=subprocess.DEVNULL)
    client = redis.Redis(port=port, decode_responses=True)
    try:
        yield port, client
    finally:
        process.terminate()
        process.wait(PATIENCE)


def answers(call):
    try:
        return call()
    except (redis.RedisError, StoreError):
        return None


@pytest.mark.slow
def test_a_failover_that_sentinel_makes_loses_nothing(another_redis, open_redis, tmp_path):
    """The server that is promoted has what was replicated."""
    master = another_redis()
    replica = another_redis("--replicaof", "127.0.0.1", str(master.port))
    with sentinel(tmp_path / "sentinel", master.port) as (port, watcher):
        eventually(lambda: answers(lambda: watcher.sentinel_slaves("main")), 15)
        eventually(lambda: replica.client.info("replication")["master_link_status"] == "up")
        store = open_redis(f"redis+sentinel://127.0.0.1:{port},127.0.0.1:{free_port()}/main/0", RedisStore)
        heard = Heard()
        store.records.subscribe(USER, heard)
        store.listen()
        put(store, "rates", np.zeros(100_000))
        assert 1 == master.client.wait(1, 5000)
        master.kill()

        record = eventually(lambda: answers(lambda: store.values.publish(USER, "rates", 2, now=START)), 15)
        assert (2, 2) == (record.version, open_redis(store_url(port), RedisStore).values.entry(USER, "rates").value)
        assert heard.of(store.records.read(USER, "rates"))
        assert "master" == replica.client.info("replication")["role"]
        master.start()  # so that it can be stopped


def store_url(port):
    return f"redis+sentinel://127.0.0.1:{port}/main"


def test_a_cluster_has_it_on_one_of_its_servers(another_redis, open_redis):
    """Here it has one, which is enough to find out what cannot be done there."""
    server = another_redis("--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
    server.client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    eventually(lambda: b"cluster_state:ok" in server.client.execute_command("CLUSTER", "INFO"))
    url = f"redis+cluster://127.0.0.1:{server.port}"
    store, other = open_redis(url, RedisStore, secret="s3cret"), open_redis(url, RedisStore, secret="s3cret")
    heard = Heard()
    other.records.subscribe(USER, heard)
    other.listen()
    large = np.random.default_rng(0).integers(0, 256, 3_000_000, np.uint8)
    for value in (1, large):
        put(store, "rates", value)
        assert heard.of(store.records.read(USER, "rates"))
        assert np.array_equal(value, other.values.entry(USER, "rates").value)
    server.client.flushall()
    eventually(lambda: answers(lambda: put(other, "rates", 3).version == 3))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """One that nobody else knows, for this host."""
    folder = tmp_path_factory.mktemp("certificate")
    done = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip("needs openssl")
    return folder


def test_with_tls_the_certificate_is_checked(another_redis, open_redis, certificate):
    """One that is not known is said in one line."""
    cert, key, port = certificate / "cert.pem", certificate / "key.pem", free_port()
    another_redis("--tls-port", str(port), "--tls-cert-file", str(cert), "--tls-key-file", str(key),
                  "--tls-auth-clients", "no")  # fmt: skip
    url = f"rediss://127.0.0.1:{port}/0"
    with pytest.raises(StoreError, match=r"Correct the certificates, or the scheme") as error:
        open_redis(url)
    assert "\n" not in str(error.value)

    store = open_redis(f"{url}?ssl_ca_certs={cert}", RedisStore)
    put(store, "rates", 1)
    assert 1 == store.values.entry(USER, "rates").value


def test_an_unreachable_one_is_one_line(open_redis):
    for url in (f"redis+sentinel://u:hidden@127.0.0.1:{free_port()}/main", f"redis+cluster://127.0.0.1:{free_port()}"):
        with pytest.raises(StoreError, match=re.escape(url.replace("u:hidden@", "")) + " cannot be used now") as error:
            open_redis(url)
        assert "\n" not in str(error.value)
        assert "hidden" not in str(error.value)


def test_what_names_no_server_of_sentinel_is_refused():
    for wrong in (
        "",
        "/",
        "//main",
        "host",
        "host/",
        "host:port/main",
        "host/main/zero",
        "host,/main",
        "host/main/0/1",
    ):
        with pytest.raises(ConfigError, match=r"redis\+sentinel://user:password@host:26379,host:26379/service/0"):
            Config({}).store = f"redis+sentinel://{wrong}"
    config = Config({})
    config.store = url = "redis+sentinel://u:p@one:1,[::1],three:3/main/4"
    assert ([("one", 1), ("::1", 26379), ("three", 3)], "main", 4) == sentinels_of(url)
    config.store = url = "redis+sentinel://one/main"
    assert ([("one", 26379)], "main", 0) == sentinels_of(url)


def test_the_url_makes_the_store(another_redis):
    server = another_redis("--cluster-enabled", "yes")
    server.client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    eventually(lambda: b"cluster_state:ok" in server.client.execute_command("CLUSTER", "INFO"))
    config = Config({})
    config.store = f"redis+cluster://127.0.0.1:{server.port}"
    runtime = Runtime(config)
    try:
        assert RedisStore is type(runtime.service.store)
    finally:
        runtime.service.stop(0)
