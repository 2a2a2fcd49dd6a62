#!/usr/bin/env bash
# A laptop and hosts with sshd on one machine, each with a network address, a process table, a /tmp and a home of its
# own. Needs root; is the first process of namespaces of its own, and ends, with everything in them, when standard input
# does. Prints "ready" when every host takes connections.
#
#   unshare --net --pid --mount --uts --fork --kill-child --mount-proc tests/cluster/hosts.sh FOLDER CHECKOUT HOST...
#
# This process's own namespaces are the laptop's, at 10.77.0.1; the hosts are 10.77.0.11, 10.77.0.12, ... All of them
# see CHECKOUT where it is and FOLDER/shared as /mnt/shared; home is /mnt/home, /tmp and home lie in FOLDER/NAME.
set -euo pipefail

become() {  # NAME: takes its home and its /tmp
    hostname "$1"
    mount --bind "/mnt/lan/$1/home" /mnt/home
    mount --bind "/mnt/lan/$1/tmp" /tmp
    mkdir -p "$checkout"  # which may lie below /tmp
    mount --bind /mnt/checkout "$checkout"
}

if [ "$1" = --host ]; then  # inside one host's namespaces
    name=$2 checkout=$3
    become "$name"
    exec /usr/sbin/sshd -D -e -f /mnt/sshd_config
fi

folder=$1 checkout=$2 hosts=("${@:3}")

mount -t tmpfs tmpfs /mnt
mkdir /mnt/{lan,checkout,home,shared}
mount --bind "$folder" /mnt/lan
mount --bind "$checkout" /mnt/checkout
for name in shared laptop "${hosts[@]}"; do mkdir -p "/mnt/lan/$name"/{home/.ssh,tmp}; done
mount --bind /mnt/lan/shared /mnt/shared
sed 's#^root:.*#root:x:0:0:root:/mnt/home:/bin/bash#' /etc/passwd > /mnt/passwd
mount --bind /mnt/passwd /etc/passwd

ssh-keygen -q -t ed25519 -N '' -f /mnt/lan/laptop/home/.ssh/id_ed25519
ssh-keygen -q -t ed25519 -N '' -f /mnt/host_key
cat > /mnt/sshd_config << END
HostKey /mnt/host_key
AuthorizedKeysFile .ssh/authorized_keys
PasswordAuthentication no
UsePAM no
StrictModes no
PidFile none
LogLevel ERROR
END

mount -t tmpfs tmpfs /run  # names of network namespaces, and sshd's empty folder
mkdir /run/sshd
ip link set lo up
ip link add lan type bridge
ip address add 10.77.0.1/24 dev lan
ip link set lan up
number=10
for name in "${hosts[@]}"; do
    number=$((number + 1))
    cp /mnt/lan/laptop/home/.ssh/id_ed25519.pub "/mnt/lan/$name/home/.ssh/authorized_keys"
    ip netns add "$name"
    ip link add "lan-$number" type veth peer name eth0 netns "$name"
    ip link set "lan-$number" master lan up
    ip -n "$name" link set lo up
    ip -n "$name" address add "10.77.0.$number/24" dev eth0
    ip -n "$name" link set eth0 up
    ip -n "$name" route add default via 10.77.0.1  # Ray finds its own address by it
    ip netns exec "$name" unshare --pid --mount --uts --fork --kill-child --mount-proc \
        "$0" --host "$name" "$checkout" < /dev/null >&2 &
done
become laptop
for ((; number > 10; number--)); do
    until (exec 3<> "/dev/tcp/10.77.0.$number/22") 2> /dev/null; do sleep 0.1; done
done
echo ready
cat > /dev/null
