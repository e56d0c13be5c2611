#!/usr/bin/env bash
# publish.sh DIRECTORY FILE...: puts files and bundles into DIRECTORY, a bundle as one archive NAME.tar.gz, and writes
# SHA256SUMS of all that is there. The same bundle gives the same archive. Needs GNU tar.
set -euo pipefail

if [[ $# -lt 2 ]]; then
    echo "usage: publish.sh DIRECTORY FILE..." >&2
    exit 2
fi
directory=$1
shift
mkdir -p "$directory"

for path in "$@"; do
    name=$(basename "$path")
    if [[ -d $path ]]; then name=$name.tar.gz; fi
    if [[ -e $directory/$name ]]; then
        echo "error: $directory/$name is there already (hint: publish into an empty directory, under one name each)" >&2
        exit 2
    fi
    if [[ -d $path ]]; then
        tar --create --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 --mode=u=rwX,go=rX \
            --directory="$(dirname "$path")" -- "$(basename "$path")" | gzip --no-name >"$directory/$name"
    else
        cp -- "$path" "$directory/$name"
    fi
done

cd "$directory"
find . -maxdepth 1 -type f ! -name SHA256SUMS -printf '%f\0' | LC_ALL=C sort --zero-terminated |
    xargs -0 sha256sum -- >SHA256SUMS
