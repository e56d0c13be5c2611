#!/usr/bin/env bash
# Finds the program of the action: BINARY, or that of the release VERSION of REPOSITORY, or the one of PATH.
# Its path is the output `binary`.
set -euo pipefail

fail() {
    echo "::error::$1"
    exit 2
}

# fetch NAME DIRECTORY: a file of the release.
fetch() {
    local url=$GITHUB_SERVER_URL/$REPOSITORY/releases/download/$VERSION/$1
    curl --fail --silent --show-error --location --retry 3 --output "$2/$1" "$url" ||
        fail "$url: it cannot be fetched (hint: \`version\` is the tag of a release that has it)"
}

digest_of() {
    if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}

# The program of a release, held to the release's SHA256SUMS.
fetch_release() {
    local name directory expected
    name=dijiang-$(uname -s)-$(uname -m)
    directory=$(mktemp -d "$RUNNER_TEMP/dijiang.XXXXXX")
    fetch SHA256SUMS "$directory"
    fetch "$name" "$directory"
    expected=$(awk -v name="$name" '$2 == name || $2 == "*" name { print $1 }' "$directory/SHA256SUMS")
    if [[ -z $expected ]]; then fail "$VERSION: its SHA256SUMS does not list $name"; fi
    if [[ $(digest_of "$directory/$name") != "$expected" ]]; then
        rm -r "$directory"
        fail "$VERSION: $name is not what SHA256SUMS says"
    fi
    chmod +x "$directory/$name"
    binary=$directory/$name
}

if [[ -n $BINARY ]]; then
    binary=$BINARY
elif [[ -n $VERSION ]]; then
    fetch_release
else
    binary=$(command -v dijiang) ||
        fail "there is no dijiang in PATH (hint: give the action a \`binary\` or a \`version\`)"
fi
if [[ ! -f $binary || ! -x $binary ]]; then fail "$binary: it is no program that can be run"; fi
binary=$(cd "$(dirname "$binary")" && pwd)/$(basename "$binary")
"$binary" --version
echo "binary=$binary" >>"$GITHUB_OUTPUT"
