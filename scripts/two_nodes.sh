#!/usr/bin/env bash
# Serves models on two nodes, each a network namespace with one core, over a link of a given rate.
#
#   scripts/two_nodes.sh RATE DIR... [OPTION]...
#
# DIRs and OPTIONs are those of `krakenlm bench serve`; krakenlm of an environment with vLLM has to
# be on PATH. Needs root, as scripts/netns_bench.sh does, which makes the link.
set -euo pipefail

if [[ -z ${NETNS_SPACES:-} ]]; then
    (($# >= 2)) || { echo "usage: two_nodes.sh RATE DIR... [OPTION]..." >&2; exit 2; }
    rate=$1
    shift
    exec env COMMANDS=1 "${BASH_SOURCE%/*}/netns_bench.sh" "$rate" "$(realpath "$0")" "$@"
fi
read -r _ second _ <<<"$NETNS_SPACES"
interface=$GLOO_SOCKET_IFNAME address=$MASTER_ADDR
# vLLM takes these for its own, and would find a rank of torchrun.
unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT
export VLLM_HOST_IP=$address VLLM_CPU_OMP_THREADS_BIND=0
peer="ip netns exec $second env VLLM_HOST_IP=${address%.*}.2 VLLM_CPU_OMP_THREADS_BIND=1"
peer+=" GLOO_SOCKET_IFNAME=${interface%0}1"
exec krakenlm bench serve "$@" --devices 2 --peer "$peer" --master-addr "$address"
