#!/bin/sh
# Sees to the programs that the tests need: a Chromium for the tests in a real browser, and the servers of shared stores.
set -eu

found() {
    for program; do
        if command -v "$program" >/dev/null || [ -x "$program" ]; then return 0; fi
    done
    return 1
}

missing=""
found chromium chromium-browser google-chrome || missing="$missing chromium"
found redis-server valkey-server || missing="$missing redis-server"
found postgres /usr/lib/postgresql/*/bin/postgres || missing="$missing postgresql"
if [ -z "$missing" ]; then exit 0; fi

if ! command -v apt-get >/dev/null; then
    echo "The tests need these programs on the PATH, or what replaces them (google-chrome, valkey-server):$missing" >&2
    exit 1
elif [ "$(id -u)" = 0 ]; then
    as_root=""
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    echo "The tests need programs that only root may install here:" >&2
    echo "    sudo apt-get update && sudo apt-get install$missing" >&2
    exit 1
fi

echo "Installing$missing with apt-get ..."
$as_root apt-get update -qq
# shellcheck disable=SC2086  # one word for each
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
