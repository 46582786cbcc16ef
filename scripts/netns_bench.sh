#!/usr/bin/env bash
# Runs a command once per rank: each in a network namespace of its own, over a link of a given rate.
set -euo pipefail

# A burst below 64 KB, the largest packet that TCP hands down, makes tbf cut packets up within the
# sender's own system call, which then lasts as long as the message takes. A larger one lets more
# pass at full speed after a pause than a link of that rate would. krakenlm/ranks/namespaces.py makes
# the same link for the demo.
readonly RANKS=${RANKS:-2} BURST=${BURST:-80kb} DELAY=${DELAY:-}
readonly COMMANDS=${COMMANDS:-$RANKS}
# The namespaces see nothing but each other: constants cannot collide with the machine's networks.
readonly SUBNET=10.213.0 PORT=${MASTER_PORT:-29500}
# With the pid two runs at once stay apart. An interface's name has room for 15 characters.
readonly SPACE=kraken-$$ LINK=kr$$
# Tenths of a second from TERM to KILL, and until processes that outlive even that are given up.
readonly PATIENCE=50 GIVE_UP=150

spaces=()

usage() {
    cat <<'TEXT'
Usage: scripts/netns_bench.sh RATE COMMAND [ARGUMENT]...

Runs COMMAND once per rank, each rank in a network namespace of its own; the ranks talk over veth
links held to RATE in each direction. Two ranks share one link, more are joined by a bridge. Every
rank has torchrun's environment variables, and rank 0's output is shown. Needs root, ip and tc.

RATE is what tc takes (1gbit, 100mbit; beware that gbps are gigabytes), or none for no limit.

Environment:
  RANKS        how many ranks (2)
  COMMANDS     how many of them, from the first on, run COMMAND (all); it finds the names of the
               namespaces in NETNS_SPACES and may run more in them with ip netns exec
  BURST        what may pass at once at full speed, in tc's units (80kb: kilobytes)
  DELAY        one-way delay that netem adds, such as 50us (none)
  MASTER_PORT  the port rank 0 listens on (29500)

The exit status is that of the first rank that fails, 2 where the ranks could not be started.

Example: scripts/netns_bench.sh 1gbit krakenlm bench latency --devices 2
TEXT
}

die() {
    echo "netns_bench.sh: $*" >&2
    exit 2
}

# Runs a step whose failure is one line: what went wrong, and tc's or ip's own first words. With exec
# there is no shell in between: interrupted at the wrong moment it signals itself for ever.
attempt() {
    local wrong=$1 said
    shift
    said=$(exec "$@" 2>&1) || die "$wrong ('$*': ${said%%$'\n'*})"
}

check_machine() {
    [[ $(id -u) == 0 ]] || die "only root can make network namespaces: run it with sudo -E"
    local tool
    for tool in ip:iproute2 tc:iproute2 setsid:util-linux; do
        type -P "${tool%:*}" >/dev/null || die "'${tool%:*}' is not on PATH: install ${tool#*:}"
    done
}

check_request() {
    [[ $RANKS =~ ^[1-9][0-9]?$ ]] || die "RANKS has to be a number from 1 to 99, not '$RANKS'"
    [[ $COMMANDS =~ ^[1-9][0-9]?$ ]] && ((COMMANDS <= RANKS)) ||
        die "COMMANDS has to be a number from 1 to RANKS ($RANKS), not '$COMMANDS'"
    [[ $PORT =~ ^[1-9][0-9]{0,4}$ ]] || die "MASTER_PORT has to be a port, not '$PORT'"
    type -P -- "$1" >/dev/null || die "there is no command '$1': install it, or give its path"
}

# The name is noted first: a signal in the middle of making it must not leave it behind.
add_space() {
    spaces+=("$1")
    attempt "cannot make a network namespace: run it on a machine or in a container that may" \
        ip netns add "$1"
    attempt "cannot use the namespace's loopback" ip -n "$1" link set lo up
}

# A veth pair whose ends are born inside the namespaces: the machine's own is never touched.
add_veth() {
    local space=$1 name=$2 peer_space=$3 peer=$4
    attempt "cannot make a veth link: the kernel needs its veth module" \
        ip -n "$space" link add name "$name" type veth peer name "$peer" netns "$peer_space"
}

# Without IPv6 addresses there is only one that gloo can pick.
bring_up() {
    attempt "cannot bring a link up" ip -n "$1" link set "$2" addrgenmode none up
}

add_delay() {
    attempt "DELAY '$DELAY' has to be such as 50us, and the kernel needs its sch_netem module" \
        tc -n "$1" qdisc add dev "$2" root handle 1: netem delay "$DELAY" limit 10000
}

# The queue holds more than the windows of a few sockets: like a machine's own queue in front of its
# network card it makes the sender wait and drops nothing.
limit_rate() {
    local space=$1 name=$2
    shift 2
    attempt "tc takes no RATE '$RATE' (but 1gbit, or none) with BURST '$BURST' (but 80kb)" \
        tc -n "$space" qdisc add dev "$name" "$@" tbf rate "$RATE" burst "$BURST" limit 16mb
}

# A queue shapes what leaves: each end of a link has one, which limits both directions. The delay is
# on a rank's end only; at a bridge's end it would count twice.
shape() {
    local space=$1 name=$2 delay=$3 place=(root)
    if [[ -n $delay ]]; then
        add_delay "$space" "$name"
        place=(parent 1:1)
    fi
    [[ $RATE == none ]] || limit_rate "$space" "$name" "${place[@]}"
}

set_up_rank() {
    local space=$SPACE-$1 name=${LINK}v$1
    shape "$space" "$name" "$DELAY"
    attempt "cannot give a rank its address" \
        ip -n "$space" address add "$SUBNET.$(($1 + 1))/24" dev "$name"
    bring_up "$space" "$name"
}

join_pair() {
    add_veth "$SPACE-0" "${LINK}v0" "$SPACE-1" "${LINK}v1"
}

join_bridge() {
    local space=$SPACE-bridge bridge=${LINK}b port rank
    add_space "$space"
    attempt "cannot make a bridge: the kernel needs its bridge module" \
        ip -n "$space" link add name "$bridge" type bridge
    bring_up "$space" "$bridge"
    for ((rank = 0; rank < RANKS; rank++)); do
        port=${LINK}p$rank
        add_veth "$SPACE-$rank" "${LINK}v$rank" "$space" "$port"
        shape "$space" "$port" ""
        attempt "cannot join a link to the bridge" ip -n "$space" link set "$port" master "$bridge"
        bring_up "$space" "$port"
    done
}

make_network() {
    local rank
    for ((rank = 0; rank < RANKS; rank++)); do
        add_space "$SPACE-$rank"
    done
    if ((RANKS == 2)); then join_pair; else join_bridge; fi
    for ((rank = 0; rank < RANKS; rank++)); do
        set_up_rank "$rank"
    done
}

# Reports "RANK STATUS" when the command has ended. (wait -n would do without a report, but before
# bash 5.3 it can miss a job that was killed at the moment another one ended.)
run_rank() {
    local rank=$1 status=0 stderr
    shift
    export RANK=$rank LOCAL_RANK=$rank WORLD_SIZE=$RANKS LOCAL_WORLD_SIZE=$RANKS
    export MASTER_ADDR=$SUBNET.1 MASTER_PORT=$PORT GLOO_SOCKET_IFNAME=${LINK}v$rank
    export NETNS_SPACES=${spaces[*]}
    # bash itself would say "Terminated" of every rank that it ends: only the command may speak.
    exec {stderr}>&2 2>/dev/null
    ((rank == 0)) || exec >/dev/null
    # In a session of its own it does not hear Ctrl-C: this script ends it, once and in one way.
    ip netns exec "$SPACE-$rank" setsid "$@" 2>&"$stderr" {stderr}>&- {ended}>&- || status=$?
    echo "$rank $status" >&"$ended"
}

run_ranks() {
    local rank status left
    exec {ended}<> <(:) # a pipe without a name
    for ((rank = 0; rank < COMMANDS; rank++)); do
        run_rank "$rank" "$@" &
    done
    for ((left = COMMANDS; left > 0; left--)); do
        read -r -u "$ended" rank status
        if ((status != 0)); then
            echo "netns_bench.sh: rank $rank ended with status $status" >&2
            exit "$status"
        fi
    done
}

processes() {
    local space
    for space in "${spaces[@]}"; do
        ip netns pids "$space" 2>/dev/null
    done
}

# Everything in the namespaces, also what left its process group. Each is told once: a second TERM
# could hit a command while it cleans up. A job without such processes is one about to enter.
end_processes() {
    local signal=TERM pid pids tenth
    local -A told=()
    for ((tenth = 0; tenth < GIVE_UP; tenth++)); do
        pids=$(processes)
        [[ -n $pids || -n $(jobs -pr) ]] || return
        if ((tenth == PATIENCE)); then signal=KILL told=(); fi
        for pid in $pids; do
            [[ -n ${told[$pid]:-} ]] || kill -s "$signal" "$pid" 2>/dev/null
            told[$pid]=yes
        done
        sleep 0.1
    done
    echo "netns_bench.sh: still there after KILL: processes ${pids//$'\n'/ }" >&2
}

# A namespace takes its links with it.
clean_up() {
    set +e
    trap '' HUP INT QUIT PIPE TERM
    end_processes
    local space
    for space in "${spaces[@]}"; do
        ip netns delete "$space" 2>/dev/null
    done
}

main() {
    if [[ ${1:-} == --help || ${1:-} == -h ]]; then
        usage
        exit
    fi
    (($# >= 2)) || die "usage: netns_bench.sh RATE COMMAND [ARGUMENT]... (--help says more)"
    readonly RATE=$1
    shift
    check_machine
    check_request "$1"
    trap clean_up EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 131' QUIT
    trap 'exit 141' PIPE
    trap 'exit 143' TERM
    make_network
    run_ranks "$@"
}

main "$@"
