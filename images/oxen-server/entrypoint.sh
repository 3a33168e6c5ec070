#!/bin/sh
# Starts oxen-server in place of this shell, so that SIGTERM reaches it: it answers what it has begun, and ends.
set -eu
mkdir -p "$HOME" "$SYNC_DIR" # it looks for both at its start
exec oxen-server start --ip "$BIND_ADDRESS" --port "$BIND_PORT"
