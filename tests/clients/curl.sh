#!/usr/bin/env bash
# A client that is nothing but curl: JSON over HTTP/1.1. It submits, watches, explains and cancels jobs, and reads their
# output. WEIR_SERVER is the broker's host and port, WEIR_TOKEN its token.
set -euo pipefail

weir=(curl --silent --show-error --fail-with-body --no-buffer --max-time 120)
weir+=(--header "authorization: Bearer $WEIR_TOKEN" --header "content-type: application/json")

call() { # METHOD REQUEST
    "${weir[@]}" --data "$2" "http://$WEIR_SERVER/weir.v1.$1"
}

fail() {
    echo "curl.sh: $*" >&2
    exit 1
}

# A job for this machine's pool, which runs a command in a shell.
job() { # NAME CPU_MILLIS SCRIPT
    local resources="{\"cpuMillis\": $2, \"memoryBytes\": 67108864}"
    local process="{\"command\": [\"sh\", \"-c\", \"$3\"]}"
    local group="{\"resources\": $resources, \"process\": $process}"
    echo "{\"name\": \"$1\", \"spec\": {\"constraints\": {\"pools\": [\"local\"]}, \"groups\": [$group]}}"
}

# Reads the watch, which is a line of JSON per message, until it shows a job in a phase.
wait_for() { # NAME PHASE
    local line
    while IFS= read -r -t 60 line <&"$watch"; do
        [[ $line == *"\"name\":\"$1\",\"queue\":\"default\",\"phase\":\"JOB_PHASE_$2\""* ]] && return
    done
    fail "the watch did not show $1 as $2"
}

# The bytes of one stream, which come in base64.
output() { # STREAM
    sed -n "s/.*\"stream\":\"LOG_STREAM_$1\".*\"data\":\"\([^\"]*\)\".*/\1/p" | while read -r data; do base64 -d <<<"$data"; done
}

exec {watch}< <(exec "${weir[@]}" --data '{}' "http://$WEIR_SERVER/weir.v1.JobService/WatchJobs")
watcher=$!
trap 'kill "$watcher" 2>/dev/null || true' EXIT
# A list of the live jobs. What changes after it is shown, however fast a job ends.
IFS= read -r -t 60 list <&"$watch" && [[ $list == *'"relisted":true'* ]] || fail "the watch began with ${list:-nothing}"

call JobService/Submit "{\"jobs\": [$(job hello 100 'echo hello; echo bad >&2')]}"
logs=$(call JobService/Logs '{"job": {"name": "hello"}, "follow": true}')
[ "$(output STDOUT <<<"$logs")" = hello ] || fail "standard output: $logs"
[ "$(output STDERR <<<"$logs")" = bad ] || fail "standard error: $logs"
wait_for hello SUCCEEDED

# One task needs more CPUs than any machine has.
call JobService/Submit "{\"jobs\": [$(job waits 1000000 true)], \"allowPending\": true}"
why=$(call JobService/Why '{"job": {"name": "waits"}}')
[[ $why == *'"pool":"local","reason":{"code":"TaskTooLarge"'* ]] || fail "why: $why"

call JobService/Submit "{\"jobs\": [$(job sleeps 100 'sleep 3600')]}"
wait_for sleeps RUNNING
call JobService/Cancel '{"jobs": [{"name": "sleeps"}, {"name": "waits"}]}'
wait_for sleeps CANCELLED

events=$(call EventService/StreamEvents '{"filter": {"job": {"name": "hello"}, "kinds": ["EVENT_KIND_JOB_ENDED"]}}')
[[ $events == *'"kind":"EVENT_KIND_JOB_ENDED"'*'"jobPhase":"JOB_PHASE_SUCCEEDED"'* ]] || fail "events: $events"

refused=$(call JobService/GetJob '{"job": {"name": "nope"}}') && fail "it was found: $refused"
[[ $refused == '{"code":"not_found",'* ]] || fail "an unknown job: $refused"
refused=$(call JobService/Submit '{"jobs": [{"spec": {}}]}') && fail "it was accepted: $refused"
[[ $refused == *'"field":"jobs[0].spec.groups"'* ]] || fail "a job without groups: $refused"
