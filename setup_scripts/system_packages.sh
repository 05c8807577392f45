#!/bin/sh
# Sees to the one system package that the tests need: a Chromium for the tests in a real browser.
set -eu

for browser in chromium chromium-browser google-chrome; do
    if command -v "$browser" >/dev/null; then exit 0; fi
done

if ! command -v apt-get >/dev/null; then
    echo "The tests need a Chromium: install one, so that 'chromium' or 'google-chrome' is on the PATH." >&2
    exit 1
elif [ "$(id -u)" = 0 ]; then
    as_root=""
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    echo "The tests need a Chromium, and only root may install it here:" >&2
    echo "    sudo apt-get update && sudo apt-get install chromium" >&2
    exit 1
fi

echo "Installing chromium with apt-get ..."
$as_root apt-get update -qq
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null
