"""The earthquakes of the last 24 hours, from the feed of the US Geological Survey."""

import os
import threading
from dataclasses import dataclass
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pandas as pd

import panel_schedule as ps

URL = os.environ.get("QUAKES_URL", "https://earthquake.usgs.gov/earthquakes/feed/v1.0/summary/all_day.geojson")
DATA = Path(__file__).parent.parent / "data"
DAY = pd.Timedelta("1D")


@dataclass(frozen=True)
class Feed:
    title: str
    sample: bool
    events: pd.DataFrame  # newest first


@ps.schedule(period="1m")
async def quakes() -> Feed:
    """The feed, or a sample of made-up events for as long as the feed has never been reached."""
    try:
        return parse(await fetch(URL), sample=False)
    except httpx.HTTPError:
        if quakes() and not quakes().sample:
            raise
        return parse(await fetch(sample_url(), trust_env=False), sample=True)


async def fetch(url: str, **options) -> dict:
    async with httpx.AsyncClient(timeout=5, **options) as client:
        response = await client.get(url)
    return response.raise_for_status().json()


def parse(feed: dict, sample: bool) -> Feed:
    """Take the earthquakes out of GeoJSON. The sample's day repeats itself, and so never grows old."""
    events = pd.DataFrame([feature["properties"] for feature in feed["features"]])
    events[["longitude", "latitude", "depth"]] = [feature["geometry"]["coordinates"] for feature in feed["features"]]
    events = events[events["type"] == "earthquake"].dropna(subset="mag").fillna({"place": "somewhere", "depth": 0})
    events["time"] = pd.to_datetime(events["time"], unit="ms", utc=True)
    if sample:
        now = pd.Timestamp.now("UTC")
        events["time"] = now - (now - events["time"]) % DAY
    events = events[["time", "mag", "place", "depth", "longitude", "latitude"]]
    return Feed(feed["metadata"]["title"], sample, events.sort_values("time", ascending=False, ignore_index=True))


@cache
def sample_url() -> str:
    """Serve the sample on this machine, so that what fetches it need not know."""
    handler = partial(Silent, directory=DATA)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/quakes_sample.geojson"


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass
