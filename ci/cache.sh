#!/usr/bin/env bash
# cache.sh pack|unpack: puts what CACHED lists, one path a line, into the one file that is cached, or takes it from there.
# A cache is found by the paths in it too: one file is found whatever jobs there are. Needs tar.
set -euo pipefail

archive=$RUNNER_TEMP/dijiang-bundles.tar
case ${1:-} in
pack)
    rm -f "$archive"
    while IFS= read -r path; do
        if [[ -e $path ]]; then printf '%s\n' "$path"; fi
    done <<<"$CACHED" >"$archive.list"
    tar -c -P -f "$archive.part" -T "$archive.list"
    rm "$archive.list"
    mv "$archive.part" "$archive"
    ;;
unpack)
    if [[ -e $archive ]]; then tar -x -P -f "$archive"; fi
    ;;
*)
    echo "usage: cache.sh pack|unpack" >&2
    exit 2
    ;;
esac
