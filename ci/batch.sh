#!/usr/bin/env bash
# Runs DIJIANG on the jobs of FILE, or on those of ONLY and SHARD, with reports in the directory REPORT. The outputs
# `report`, `junit` and `exit-status` are there also where a job failed.
set -euo pipefail

arguments=()
while IFS= read -r name; do
    # Without the blanks around it.
    name=${name#"${name%%[![:space:]]*}"} name=${name%"${name##*[![:space:]]}"}
    if [[ -n $name ]]; then arguments+=("--only=$name"); fi
done <<<"$ONLY"
if [[ -n $SHARD ]]; then arguments+=("--shard=$SHARD"); fi
if [[ $KEEP_GOING == true ]]; then arguments+=(--keep-going); fi

mkdir -p "$REPORT"
reports=("--report=json=$REPORT/report.json" "--report=junit=$REPORT/junit.xml" "--report=github=$GITHUB_STEP_SUMMARY")
status=0
"$DIJIANG" batch "$FILE" ${arguments[@]+"${arguments[@]}"} "${reports[@]}" || status=$?
{
    echo "report=$REPORT/report.json"
    echo "junit=$REPORT/junit.xml"
    echo "exit-status=$status"
} >>"$GITHUB_OUTPUT"
exit "$status"
