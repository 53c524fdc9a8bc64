#!/bin/sh
# A provider for `[provider] kind = "exec"`: a plain container. Here it is a network namespace with a veth, and a
# process in it that stands for the container's first; replace the two marked lines with what your runtime does.
#
#   container.sh create    < {"sandboxID", "templateID", "metadata", "envVars", "caCertificate", "caBundle"}
#                          > {"iface", "addrs", "mac"}
#   container.sh destroy   < {"sandboxID", "iface"}
#
# What counts: the interface that `create` names is there and *down* when `create` ends. The filter is attached to it,
# and only then is it switched on, so that the container says nothing unfiltered. `destroy` takes away whatever there
# is, also after a `create` that failed half-way, and succeeds if there is nothing.
set -eu

input=$(cat)
field() { printf '%s' "$input" | python3 -c 'import json, sys; print(json.load(sys.stdin).get(sys.argv[1]) or "")' "$1"; }

id=$(field sandboxID)
short=$(printf '%.11s' "$id")
netns=ctr-$short
iface=ctr-$short

# An address for each sandbox out of 10.210.0.0/16, by a lock file a number.
pool=/run/sandbox-filter-container
gateway=10.210.0.1

take_address() {
    mkdir -p "$pool"
    for n in $(seq 2 65534); do
        if (set -C; echo "$id" > "$pool/$n") 2>/dev/null; then
            echo "10.210.$((n / 256)).$((n % 256))"
            return
        fi
    done
    echo 'every address of 10.210.0.0/16 is taken' >&2
    exit 1
}

# The host's end: no address, a route and the other end's hardware address. Done in the background, since an
# interface that is down has no routes: it waits until the filter is there and the interface is up.
connect() {
    for _ in $(seq 500); do
        if ip link show "$iface" up | grep -q .; then
            ip neigh replace "$1" lladdr "$2" dev "$iface" nud permanent
            ip route replace "$1/32" dev "$iface"
            return
        fi
        sleep 0.02
    done
}

case $1 in
create)
    address=$(take_address)
    mac=$(printf '02:d0:%02x:%02x:%02x:%02x' $(echo "$address" | tr . ' '))
    host_mac=$(printf '02:d1:%02x:%02x:%02x:%02x' $(echo "$address" | tr . ' '))
    ip netns add "$netns"
    ip link add "$iface" address "$host_mac" type veth peer name eth0 address "$mac" netns "$netns"
    ip -n "$netns" link set lo up
    ip -n "$netns" link set eth0 up
    ip -n "$netns" addr add "$address/32" dev eth0
    ip -n "$netns" neigh add "$gateway" lladdr "$host_mac" dev eth0 nud permanent
    ip -n "$netns" route add "$gateway/32" dev eth0
    ip -n "$netns" route add default via "$gateway" dev eth0
    # Where the policy sets headers, the filter passes for their hosts: the container has to trust it. The files
    # belong under the bundle's rootfs, and the variables into `process.env` of its config.json, for programs that
    # look elsewhere (docs/transforms.md says which).
    #   install -D -m 644 "$(field caBundle)" "$rootfs/etc/ssl/certs/ca-certificates.crt"
    #   install -D -m 644 "$(field caCertificate)" "$rootfs/etc/ssl/sandbox-filter-ca.pem"
    #   SSL_CERT_FILE, REQUESTS_CA_BUNDLE, GIT_SSL_CAINFO = /etc/ssl/certs/ca-certificates.crt
    #   NODE_EXTRA_CA_CERTS = /etc/ssl/sandbox-filter-ca.pem
    # The container starts here:   runc run --detach --bundle "/bundles/$(field templateID)" "$id"
    connect "$address" "$mac" > /dev/null 2>&1 < /dev/null &
    printf '{"iface": "%s", "addrs": ["%s"], "mac": "%s"}\n' "$iface" "$address" "$mac"
    ;;
destroy)
    # The container ends here:     runc delete --force "$id"
    ip link del "$iface" 2> /dev/null || true
    ip netns del "$netns" 2> /dev/null || true
    grep -lx "$id" "$pool"/* 2> /dev/null | xargs -r rm -f
    ;;
*)
    echo "usage: $0 create|destroy" >&2
    exit 2
    ;;
esac
