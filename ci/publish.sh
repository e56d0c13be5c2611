#!/usr/bin/env bash
# publish.sh DIRECTORY FILE...: puts files and bundles into DIRECTORY, a bundle as one archive NAME.tar.gz, and writes
# SHA256SUMS of them. All of them are put there, or nothing is. The same bundle gives the same archive; what training runs
# keep in it is left out. Needs bash 4, GNU tar, gzip and sha256sum.
set -euo pipefail

if [[ $# -lt 2 ]]; then
    echo "usage: publish.sh DIRECTORY FILE..." >&2
    exit 2
fi
directory=$1
shift
mkdir -p "$directory"
work=$(mktemp -d "$directory/.publish.XXXXXX")
trap 'rm -rf "$work"' EXIT

# free NAME: refuses one that is there already, or is put there now.
free() {
    if [[ -e $directory/$1 || -e $work/$1 ]]; then
        echo "error: $directory/$1 is there already (hint: publish into an empty directory, under one name each)" >&2
        exit 2
    fi
}

free SHA256SUMS
for path in "$@"; do
    name=$(basename "$path")
    if [[ -d $path ]]; then
        free "$name.tar.gz"
        tar --create --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 --mode=u=rwX,go=rX \
            --anchored --no-wildcards --exclude="$name/train" --wildcards --exclude="$name/.*" \
            --directory="$(dirname "$path")" -- "$name" | gzip --no-name >"$work/$name.tar.gz"
    else
        free "$name"
        cp -- "$path" "$work/$name"
    fi
done

shopt -s dotglob
export LC_ALL=C
sums=$(cd "$work" && sha256sum -- *)
printf '%s\n' "$sums" >"$work/SHA256SUMS"
mv -- "$work"/* "$directory"
