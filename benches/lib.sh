# What the benchmark scripts share: a directory and processes that end with the script, free ports, and readiness.
# Sourced after the arguments are read, in the project's root.

work=$(mktemp -d)
pids=

finish() {
    for pid in $pids; do
        kill "$pid" 2>/dev/null || :
    done
    for pid in $pids; do
        wait "$pid" 2>/dev/null || :
    done
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Ends with a reason, and with the end of a log if there is one: reason, file.
fail() {
    echo "${0##*/}: $1" >&2
    [ ! -s "${2:-/dev/null}" ] || tail -n 20 "$2" | sed 's/^/  | /' >&2
    exit 1
}

# Waits until Weir takes calls: pid, port, log.
await_health() {
    tries=0
    until "$weir" health --addr "http://127.0.0.1:$2" >/dev/null 2>&1; do
        kill -0 "$1" 2>/dev/null || fail "weir ended at once" "$3"
        tries=$((tries + 1))
        [ $tries -lt 300 ] || fail "weir does not get ready" "$3"
        sleep 0.1
    done
}

# Prints a port that nothing uses at the moment; offsets keep the ports of one run apart.
free_port() {
    port=$((20000 + ($$ * 7 + $1 * 1009) % 12000))
    while grep -qi "$(printf ':%04X ' "$port")" /proc/net/tcp; do
        port=$((port + 1))
    done
    echo "$port"
}

build_weir() {
    cargo build --release --quiet --bin weir >&2
    echo target/release/weir
}
