#!/bin/sh
# Writes what differs from place to place beside nginx's temporary files and starts nginx in place of this shell.
#   OXEN_TOKEN_FILE  a file that holds the token (a mounted secret), or OXEN_TOKEN the token itself
#   LISTEN           what nginx listens on, 8080
#   UPSTREAM         where oxen-server is, 127.0.0.1:3000
#   CONFIG, TMPDIR   nginx's configuration and the one folder that is written to
set -eu
umask 077
fail() {
  echo "proxy: $1" >&2
  exit 2
}

if [ -n "${OXEN_TOKEN_FILE:-}" ]; then
  token=$(cat "$OXEN_TOKEN_FILE") || fail "OXEN_TOKEN_FILE=$OXEN_TOKEN_FILE cannot be read"
else
  token=$(printf %s "${OXEN_TOKEN:-}") # without the line break that a Secret made of a file ends with
fi
unset OXEN_TOKEN # nginx has no need of it in its environment
[ -n "$token" ] || fail "no token, or an empty one; expected it in the file that OXEN_TOKEN_FILE names, or in OXEN_TOKEN"
# in the C locale, where letters with accents and the like are no characters of these
if printf %s "$token" | LC_ALL=C grep -q '[^!-~]' || [ "$(printf %s "$token" | wc -l)" -gt 0 ]; then
  fail "the token holds a space, a line break or a character that is not ASCII, which no header can carry"
fi

[ "${#token}" -le 1000 ] || fail "the token has ${#token} characters; expected 1000 at most"

# Each byte as \xNN, so that no character of the token means anything to nginx or in a regular expression, and upper and
# lower case differ, as they do not in nginx's comparisons of whole strings. printf is part of the shell: the token is
# in no list of processes.
bytes=$(printf %s "$token" | od -An -v -tx1 | tr -d ' \n' | sed 's/../\\x&/g')
folder=$TMPDIR/proxy
mkdir -p "$folder"
printf '"~\\ABearer %s\\z" 1;\n' "$bytes" >"$folder/token.conf"
printf 'listen %s;\n' "$LISTEN" >"$folder/listen.conf"
printf 'server %s;\n' "$UPSTREAM" >"$folder/upstream.conf"
cp "$CONFIG" "$folder/nginx.conf" # includes are looked for beside it

exec nginx -p "$folder" -c "$folder/nginx.conf" -e stderr
