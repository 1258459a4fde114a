# Runs in the machine of vm/lacking.rs; every line it prints is a fact that the test knows.
set -eu
# CRIU is to do without the breakpoints of the processor: for these the kernel changes its own code, which two
# emulated processors do not always see in time ("Oops: int3" in __schedule).
export CRIU_FAULT=130
mkdir -p /b/rootfs/{bin,proc,dev,sys,tmp} /c
cp /usr/bin/busybox /b/rootfs/bin/
for name in sh cat md5sum mv; do ln -s busybox /b/rootfs/bin/$name; done
cd /b

for profile in first second; do
    cat <<END
profile xebec-$profile flags=(attach_disconnected,mediate_deleted) {
    file,
    capability,
    network,
    unix,
    mount,
    umount,
    signal,
    ptrace,
}
END
done > /tmp/profiles
apparmor_parser --replace /tmp/profiles

# A network that is there before the container and after it, as under an engine.
mkdir -p /run/netns
touch /run/netns/t
unshare -n mount --bind /proc/self/ns/net /run/netns/t

# It counts, and does what it is asked for by a letter in a fifo: keep another file in its memory,
# say what is in there. The file is small: a heap that grows counts as written to, all of it.
cat > rootfs/bin/count <<'END'
early=$(cat /early) late= i=0
exec 3<>/tmp/ask
while true; do
    i=$((i+1))
    echo $i >> /tmp/count
    ask=
    read -r -t 0.2 -u 3 ask || :
    case $ask in
        k) late=$(cat /late); echo kept > /tmp/kept ;;
        s) echo "$early$late" | md5sum > /tmp/new; mv /tmp/new /tmp/said ;;
    esac
done
END
mkfifo rootfs/tmp/ask
head -c 3145728 /dev/urandom | base64 -w 0 > rootfs/early
head -c 1536 /dev/urandom | base64 -w 0 > rootfs/late
truth=$(cat rootfs/early rootfs/late - <<< '' | md5sum)
xebec spec
jq '.process.terminal = false | .root.readonly = false | .process.args = ["sh", "/bin/count"] |
    .process.apparmorProfile = "xebec-first" |
    (.linux.namespaces[] | select(.type == "network")).path = "/run/netns/t"' config.json > next
mv next config.json

# What goes on must not hold a file of the machine's: its words are in the log.
done_by() {
    runtime=$1
    shift
    $runtime --log /tmp/log "$@" </dev/null >/dev/null 2>&1 ||
        { cat /tmp/log; tail -n 5 /c/*/*.log; exit 1; } >&2
}
await() {
    for _ in $(seq 300); do
        "$@" && return
        sleep 0.2
    done
    echo "not seen: $*" >&2
    exit 1
}
counted() { tail -n 1 /b/rootfs/tmp/count; }
has_counted() { [ -s /b/rootfs/tmp/count ] && [ "$(counted)" -gt $1 ]; }
# How a restored container goes on from where the count was.
goes_on() {
    rm -f /b/rootfs/tmp/said
    timeout 30 sh -c 'echo s > /b/rootfs/tmp/ask'
    await [ -e /b/rootfs/tmp/said ]
    await has_counted $(($2 + 1))
    # Each number once, whoever has counted.
    lost=$(awk '$1 != NR' /b/rootfs/tmp/count | wc -l)
    memory=wrong
    [ "$(cat /b/rootfs/tmp/said)" = "$truth" ] && [ $lost = 0 ] && memory=right
    echo "memory is $memory, profile $(cat /proc/$($1 state counter | jq .pid)/attr/current)"
}
restored() { done_by $1 restore --detach --bundle /b --image-path $2 "${@:3}" counter; }
ended() {
    $1 kill counter KILL
    await $1 delete counter 2>/dev/null
}
pages() { cat /c/$1/pages-*.img | wc -c; }
left() {
    find /run/xebec -name '*counter*'
    find /sys/fs/cgroup -name '*counter*'
    wc -l < /proc/self/mountinfo
    pgrep -f '^sh /bin/count$' || :
}
# What is said to a restore that has to fail.
refused() {
    before=$(left)
    status=0
    xebec restore --detach --bundle /b --image-path $1 --lsm-profile $2 counter \
        </dev/null >/dev/null 2>/tmp/error || status=$?
    sed 's/.* level=error msg="\(.*\)"$/\1/' /tmp/error
    echo "status $status, lines $(wc -l < /tmp/error)"
    [ "$before" = "$(left)" ] && echo 'nothing is left'
}

criu check >/dev/null 2>&1
done_by xebec run --detach counter
await has_counted 0

# Memory first; then what has changed since, twice.
done_by xebec checkpoint --pre-dump --image-path /c/1 counter
echo k > rootfs/tmp/ask
await [ -e rootfs/tmp/kept ]
done_by xebec checkpoint --pre-dump --parent-path ../1 --image-path /c/2 counter
echo "status $(xebec state counter | jq -r .status)"
done_by xebec checkpoint --parent-path ../2 --image-path /c/3 counter
echo "pages $(pages 1) $(pages 2) $(pages 3)"
at=$(counted)
restored xebec /c/3
echo "xebec's by xebec: $(goes_on xebec $at)"
ended xebec
# What the one has counted is not the other's.
head -n $at rootfs/tmp/count > next
cat next > rootfs/tmp/count
restored runc /c/3
echo "xebec's by runc: $(goes_on runc $at)"

# And the other way round, with another profile.
done_by runc checkpoint --pre-dump --image-path /c/4 counter
done_by runc checkpoint --parent-path ../4 --image-path /c/5 counter
at=$(counted)
restored xebec /c/5 --lsm-profile apparmor:xebec-second
echo "runc's by xebec: $(goes_on xebec $at)"

# A profile that the kernel does not have.
done_by xebec checkpoint --image-path /c/6 counter
at=$(counted)
refused /c/6 apparmor:xebec-none | sed 's/^/not loaded: /'
restored xebec /c/6
echo "afterwards: $(goes_on xebec $at)"
ended xebec

# CRIU gives no profile to what had none.
jq '.process.apparmorProfile = ""' config.json > next
mv next config.json
rm rootfs/tmp/count
done_by xebec run --detach counter
await has_counted 0
done_by xebec checkpoint --image-path /c/7 counter
refused /c/7 apparmor:xebec-second | sed 's/^/had none: /'
