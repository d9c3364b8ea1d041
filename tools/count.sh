# Sourced by scripts that run several parts, each of which ends with a line `N passed, N failed` or
# `N passed, N failed, N skipped`, and that end with the sum.
# shellcheck shell=bash
passed=0
failed=0
skipped=0

# run_counted LOG COMMAND...: shows what the command prints, keeps it in the log, adds its counts. One
# that fails without having counted a failure is a failure.
run_counted() {
    local log=$1 status=0 line
    shift
    "$@" 2>&1 | tee "$log" || status=1
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed(, [0-9]+ skipped)?$' "$log" | tail -n 1 || true)
    if [[ $line =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed(,\ ([0-9]+)\ skipped)?$ ]]; then
        passed=$((passed + BASH_REMATCH[1]))
        failed=$((failed + BASH_REMATCH[2]))
        skipped=$((skipped + ${BASH_REMATCH[4]:-0}))
        [ "$status" -eq 0 ] || [ "${BASH_REMATCH[2]}" -gt 0 ] || failed=$((failed + 1))
    else
        failed=$((failed + 1)) # it was not even built
    fi
}

# start_counted LOG COMMAND...: as run_counted, but beside others. finish_counted waits for all that were
# started, shows them one after another and adds their counts.
started=()
start_counted() {
    local log=$1
    shift
    started+=("$log")
    rm -f "$log.failed"
    { "$@" || touch "$log.failed"; } >"$log.out" 2>&1 &
}

show_started() {
    cat "$1.out"
    [ ! -e "$1.failed" ]
}

finish_counted() {
    local log
    wait
    for log in "${started[@]}"; do
        run_counted "$log" show_started "$log"
    done
}

# Prints the sum. False if something failed or nothing passed.
print_counts() {
    local summary="$passed passed, $failed failed"
    [ "$skipped" -eq 0 ] || summary="$summary, $skipped skipped"
    printf '%s\n' "$summary"
    [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
}
