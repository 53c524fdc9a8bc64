#!/bin/sh
# A provider for `[provider] kind = "exec"`: a Firecracker microVM for each sandbox.
#
#   firecracker.sh create    < {"sandboxID", "templateID", "metadata", "envVars", "caCertificate", "caBundle"}
#                            > {"iface", "addrs", "mac"}
#   firecracker.sh destroy   < {"sandboxID", "iface"}
#
# A template is a directory below $TEMPLATES with `vmlinux` and `rootfs.ext4`; the guest gets its address from the
# kernel's command line. The tap is *down* when `create` ends: the filter is attached to it, and only then is it
# switched on, so that the guest says nothing unfiltered, although it boots meanwhile. `destroy` takes away whatever
# there is, also after a `create` that failed half-way, and succeeds if there is nothing.
set -eu

TEMPLATES=${TEMPLATES:-/var/lib/firecracker/templates}
RUN=${RUN:-/run/firecracker}
# Every tap of the host has this one address, so that a new sandbox changes nothing about the host's own.
GATEWAY=10.211.0.1

input=$(cat)
field() { printf '%s' "$input" | python3 -c 'import json, sys; print(json.load(sys.stdin).get(sys.argv[1]) or "")' "$1"; }

id=$(field sandboxID)
vm=$RUN/$id
tap=fc-$(printf '%.12s' "$id")

take_address() {
    mkdir -p "$RUN/addresses"
    for n in $(seq 2 65534); do
        if (set -C; echo "$id" > "$RUN/addresses/$n") 2>/dev/null; then
            echo "10.211.$((n / 256)).$((n % 256))"
            return
        fi
    done
    echo 'every address of 10.211.0.0/16 is taken' >&2
    exit 1
}

# Routes need an interface that is up: this waits until the filter is there.
connect() {
    for _ in $(seq 500); do
        if ip link show "$tap" up | grep -q .; then
            ip neigh replace "$1" lladdr "$2" dev "$tap" nud permanent
            ip route replace "$1/32" dev "$tap"
            return
        fi
        sleep 0.02
    done
}

# Puts a file into the image of the guest, in the place of the one that is there.
put() {
    debugfs -w -R "rm $2" "$vm/rootfs.ext4" > /dev/null 2>&1 || true
    debugfs -w -R "write $1 $2" "$vm/rootfs.ext4" > /dev/null 2>&1
}

case $1 in
create)
    template=$TEMPLATES/$(field templateID)
    case $template in *..*) echo 'a template is a name' >&2; exit 1;; esac
    [ -r "$template/vmlinux" ] || { echo "there is no template $(field templateID)" >&2; exit 1; }
    mkdir -p "$vm"
    address=$(take_address)
    mac=$(printf '02:fc:%02x:%02x:%02x:%02x' $(echo "$address" | tr . ' '))
    cp --reflink=auto "$template/rootfs.ext4" "$vm/rootfs.ext4"
    # Where the policy sets headers, the filter passes for their hosts: the guest has to trust it. For programs that
    # look elsewhere its init sets SSL_CERT_FILE, REQUESTS_CA_BUNDLE and GIT_SSL_CAINFO to the first of these files and
    # NODE_EXTRA_CA_CERTS to the second (docs/transforms.md says which).
    put "$(field caBundle)" /etc/ssl/certs/ca-certificates.crt
    put "$(field caCertificate)" /etc/ssl/sandbox-filter-ca.pem
    ip tuntap add "$tap" mode tap
    ip addr add "$GATEWAY/32" dev "$tap"
    cat > "$vm/config.json" <<END
{
  "boot-source": {
    "kernel_image_path": "$template/vmlinux",
    "boot_args": "console=ttyS0 reboot=k panic=1 pci=off ip=$address::$GATEWAY:255.255.0.0::eth0:off"
  },
  "drives": [{ "drive_id": "root", "path_on_host": "$vm/rootfs.ext4", "is_root_device": true, "is_read_only": false }],
  "network-interfaces": [{ "iface_id": "eth0", "host_dev_name": "$tap", "guest_mac": "$mac" }],
  "machine-config": { "vcpu_count": 1, "mem_size_mib": 512 }
}
END
    firecracker --api-sock "$vm/api.sock" --config-file "$vm/config.json" > "$vm/console" 2>&1 < /dev/null &
    echo $! > "$vm/pid"
    sleep 0.2
    kill -0 "$(cat "$vm/pid")" 2> /dev/null || { tail -n 1 "$vm/console" >&2; exit 1; }
    connect "$address" "$mac" > /dev/null 2>&1 < /dev/null &
    printf '{"iface": "%s", "addrs": ["%s"], "mac": "%s"}\n' "$tap" "$address" "$mac"
    ;;
destroy)
    # The number may be another process's by now, which does not have this socket among its arguments.
    if [ -r "$vm/pid" ] && grep -aqsF "$vm/api.sock" "/proc/$(cat "$vm/pid")/cmdline"; then
        kill -9 "$(cat "$vm/pid")" 2> /dev/null || true
        # A tap stays busy until its user is gone.
        for _ in $(seq 100); do kill -0 "$(cat "$vm/pid")" 2> /dev/null || break; sleep 0.02; done
    fi
    ip link del "$tap" 2> /dev/null || true
    grep -lx "$id" "$RUN/addresses"/* 2> /dev/null | xargs -r rm -f
    rm -rf "$vm"
    ;;
*)
    echo "usage: $0 create|destroy" >&2
    exit 2
    ;;
esac
