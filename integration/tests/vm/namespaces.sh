# Runs in the machine of vm/namespaces.rs; every line it prints is a fact that the test knows.
set -u
cd /tmp

# bundle DIR FILTER: a bundle whose config.json is changed by a filter of jq.
bundle() {
    mkdir -p $1/rootfs/{bin,proc,sys,dev,etc,tmp,data}
    cp /usr/bin/busybox $1/rootfs/bin/
    for applet in sh sleep true cat grep ls mount umount nsenter stat touch readlink sort wc; do
        ln -sf busybox $1/rootfs/bin/$applet
    done
    (cd $1 && rm -f config.json && xebec spec ${3:-} &&
        jq '.process.terminal=false | .process.args=["true"] |'"$2" config.json > new && mv new config.json)
}
quiet() { "$@" </dev/null >/tmp/quiet.log 2>&1 || { echo "FAILED: $*: $(cat /tmp/quiet.log)"; return 1; }; }
script() { echo ".process.args=[\"sh\",\"-c\",\"$1\"]"; }
caps() { echo '.process.capabilities |= with_entries(.value += ["CAP_SYS_ADMIN","CAP_SYS_CHROOT"])'; }
# A caller who may not enter mount namespaces pivots, whatever the kernel has.
pivots='setpriv --bounding-set=-sys_chroot'
# way COMMAND...: how the root was changed; by whoever $as makes of the caller.
way() {
    ${as:-} strace -f -o /tmp/trace "$@" </dev/null >/tmp/way.log 2>&1
    if grep -q 'open_tree(.*OPEN_TREE_NAMESPACE.*= [0-9]' /tmp/trace && grep -q 'setns(.*CLONE_NEWNS' /tmp/trace &&
        ! grep -qE '(pivot_root|umount2?)\(|clone3?\(.*CLONE_NEWNS' /tmp/trace; then
        echo namespace
    elif grep -q 'pivot_root(' /tmp/trace; then
        echo pivot
    else
        echo "neither: $(cat /tmp/way.log)"
    fi
}
# What is there before anything is run, and must be there after: mounts, mount namespaces. The tree
# of the image that the bundle came from is the snapshotter's, and leaves when it likes.
mounts() { grep -v /xebec-snapshotter/lazy/mnt/ /proc/self/mountinfo | sed 's/ shared:[0-9]*//'; }
namespaces() { readlink /proc/[0-9]*/ns/mnt | sort -u | wc -l; }

bundle warm .
quiet xebec run -b warm warm
mounts_before=$(mounts) namespaces_before=$(namespaces)

# Which way is taken, and what it costs.
bundle plain .
echo "way plain $(way xebec run -b plain plain)"
echo "way without-chroot $(as=$pivots way xebec run -b plain plain)"
# The least of a few: how often somebody waits depends on the scheduler.
calls() {
    for i in 1 2 3; do
        ${as:-} strace -f -c -o /tmp/calls "$@" </dev/null
        awk '/ total$/ {print $4}' /tmp/calls
    done | sort -n | head -1
}
echo "calls $(calls xebec run -b plain plain) $(as=$pivots calls xebec run -b plain plain)"

# The same container: mounts, propagation, options; but for numbers.
mkdir -p /srv/share/sub && mount -t tmpfs share /srv/share/sub && echo there > /srv/share/sub/file
busy='.mounts += [
    {"destination": "/data", "type": "bind", "source": "/srv/share", "options": ["rbind", "ro"]},
    {"destination": "/tmp/new/file", "type": "bind", "source": "/etc/hostname", "options": ["bind", "rshared"]},
    {"destination": "/tmp/fast", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "ro", "rprivate"]}]
  | .linux.devices = [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "uid": 7}]
  | .linux.sysctl = {"net.ipv4.ip_forward": "1"}'
look='sed "s/^[0-9]* [0-9]* [0-9:]* //; s/\\(shared\\|master\\):[0-9]*/\\1/g" /proc/self/mountinfo | sort;
  ls -ld /dev/* / /data/sub/file | sed "s/ [A-Z][a-z][a-z] .*:[0-9]* / /"; pwd; cat /proc/sys/net/ipv4/ip_forward;
  ls /proc/self/fd | wc -l; ls -l /proc/self/fd | grep -c ns; cat /proc/self/status | grep -E "Cap|Seccomp|NoNewPrivs"'
ln -sf busybox plain/rootfs/bin/sed
for propagation in '' private rshared shared rprivate; do
    bundle plain "$busy | .process.args=[\"sh\",\"-c\",$(jq -Rs . <<< "$look")] | .linux.rootfsPropagation=\"$propagation\""
    ln -sf busybox plain/rootfs/bin/sed; ln -sf busybox plain/rootfs/bin/pwd
    mkdir -p plain/rootfs/tmp/fast
    taken=$(way xebec run -b plain plain); cp /tmp/way.log /tmp/one.log
    other=$(as=$pivots way xebec run -b plain plain); cp /tmp/way.log /tmp/two.log
    diff /tmp/one.log /tmp/two.log > /tmp/diff.log && same=same || same="differ: $(head -20 /tmp/diff.log)"
    echo "propagation ${propagation:-none} $taken $other $same"
done
grep -q ' /data/sub .*tmpfs share' /tmp/one.log && grep -q '/dev/fuse' /tmp/one.log && echo "look complete"
bundle plain '.process.args=["busybox", "cut", "-d ", "-f5", "/proc/self/mountinfo"]'
xebec run -b plain plain </dev/null | sort > /tmp/mounted.log
echo "beside $(jq -r '"/", .mounts[].destination, .linux.maskedPaths[], .linux.readonlyPaths[]' plain/config.json |
    sort | comm -13 - /tmp/mounted.log | tr '\n' ' ')$(grep -c . /tmp/mounted.log | sed 's/[1-9][0-9]/many/')"
# A mount of the host's arrives below a volume that is a slave; one of the container's stays.
bundle plain '.process.args=["sleep","1000"] | .mounts += [
    {"destination": "/data", "type": "bind", "source": "/srv/share", "options": ["rbind", "rslave"]}] |'"$(caps)"
mount --make-rshared /
quiet xebec run -d -b plain volume
mkdir -p /srv/share/late && mount -t tmpfs late /srv/share/late && touch /srv/share/late/arrived
echo "propagated $(xebec exec volume ls /data/late)"
quiet xebec exec --cap CAP_SYS_ADMIN volume sh -c 'mount -t tmpfs x /tmp && mount -t tmpfs x /data/sub'
echo "contained $(grep -c ' /tmp/plain/rootfs' /proc/self/mountinfo) $(cat /srv/share/sub/file)"
umount /srv/share/late

# Who enters later is in the same place, and nobody gets out.
init=$(xebec state volume | jq .pid)
echo "exec $([ "$(xebec exec volume readlink /proc/self/ns/mnt)" = "$(readlink /proc/$init/ns/mnt)" ] && echo joins)"
echo "exec root $(xebec exec volume ls / | tr '\n' ' ')"
quiet xebec delete -f volume
touch /host-only
for hooks in '{}' '{"createRuntime": [{"path": "/bin/true"}]}'; do
    bundle out ".hooks=$hooks | $(caps) | $(script 'ls -d /../host-only /proc/1/root/../host-only; umount /; umount -l /; ls -d /host-only /../host-only; nsenter -t 1 -m ls -d /host-only; nsenter -t 1 -m /bin/busybox ls /; echo end')"
    xebec run -b out out </dev/null > /tmp/out.log 2>/dev/null
    echo "escape $hooks $(tr '\n' ' ' < /tmp/out.log)"
done

# Masks, read-only paths, a read-only root.
bundle plain "$(script 'cat /proc/kcore /proc/keys | wc -c; ls /proc/acpi /sys/firmware | wc -l; touch /proc/sys/kernel/domainname /x 2>&1 | grep -c Read-only; stat -c %t:%T /proc/kcore; cat /proc/1/mountinfo | grep -c \"null /proc/kcore.*shared\"')"
echo "hidden $(xebec run -b plain plain 2>&1 | tr '\n' ' ')"

# Where no node can be made, the host's are bound.
bundle plain "$(script 'echo x > /dev/null; stat -c %t:%T /dev/null; grep -c \" /dev/null .* - devtmpfs\" /proc/self/mountinfo; grep -c \" /dev/null .*shared\" /proc/self/mountinfo')"
taken=$(as='setpriv --bounding-set=-mknod' way xebec run -b plain plain)
echo "nodes $taken $(tr '\n' ' ' < /tmp/way.log)"

# A terminal, and a volume over the root.
bundle plain '.process.terminal=true | '"$(script 'stat -c %t /dev/console > /tmp/tty; test -t 0 && echo terminal >> /tmp/tty')"' | .root.readonly=false'
quiet command script -qec "xebec run -b plain plain" /dev/null
echo "terminal $(tr '\n' ' ' < plain/rootfs/tmp/tty)"
bundle plain '.mounts = [{"destination": "/", "type": "bind", "source": "/tmp/plain/rootfs", "options": ["bind"]}] + .mounts'
echo "way over-root $(way xebec run -b plain plain)"

# Hooks: those of the creation find the root at its place on the host, and the root is pivoted to.
cat > /tmp/hook <<'HOOK'
#!/bin/sh
pid=$(jq .pid)
case $1 in
prestart | createRuntime) seen=$(nsenter -t $pid -m ls -d /tmp/plain/rootfs/bin) ;;
createContainer) seen=$(ls -d /tmp/plain/rootfs/bin) ;;
*) seen=- ;;
esac
echo "$1 $seen" >> /tmp/hooks.log
HOOK
chmod +x /tmp/hook
hooks() {
    for kind; do
        printf '"%s": [{"path": "/tmp/hook", "args": ["hook", "%s"]}],' $kind $kind
    done | sed 's/^/.hooks = {/; s/,$/}/'
}
bundle plain "$(hooks prestart createRuntime createContainer poststart poststop)"
rm -f /tmp/hooks.log
taken=$(way xebec run -b plain plain)
echo "hooks creation $taken $(tr '\n' ' ' < /tmp/hooks.log)"
bundle plain "$(hooks poststart poststop)"' | .root.readonly=false | .hooks.startContainer =
    [{"path": "/bin/sh", "args": ["sh", "-c", "ls -d /host-only /bin > /tmp/started; ls /proc/self/fd | wc -l >> /tmp/started"]}]'
rm -f /tmp/hooks.log
taken=$(way xebec run -b plain plain)
echo "hooks later $taken $(tr '\n' ' ' < plain/rootfs/tmp/started)$(tr '\n' ' ' < /tmp/hooks.log)"

# User namespaces, with and without privileges, are pivoted.
map='[{"containerID": 0, "hostID": 100000, "size": 65536}]'
bundle mapped ".linux.namespaces += [{\"type\":\"user\"}] | .linux.uidMappings=$map | .linux.gidMappings=$map |
    $(script 'cat /proc/self/uid_map; grep -c \" /dev/null .*shared\" /proc/self/mountinfo')"
chown -R 100000:100000 mapped/rootfs
taken=$(way xebec run -b mapped mapped)
echo "userns $taken$(tr -s ' \n' ' ' < /tmp/way.log)"
useradd -m alice
bundle mine "$(script 'cat /proc/self/uid_map') | .linux.uidMappings[0].hostID=$(id -u alice) | .linux.gidMappings[0].hostID=$(id -g alice) | del(.linux.cgroupsPath)" --rootless
chown -R alice mine; mkdir -p /run/alice; chown alice /run/alice
echo "rootless $(runuser -u alice -- xebec --root /run/alice run -b /tmp/mine mine 2>&1 </dev/null | tr -s ' ')"

# The shim's spawner takes the same way.
strace -f -o /tmp/shim.trace -e trace=open_tree,setns,pivot_root -p $(pidof -s containerd) 2>/dev/null & tracer=$!
sleep 1
skopeo copy -q --dest-tls-verify=false oci:/srv/corpus/busybox:busybox docker://127.0.0.1:5000/busybox:v1
ctr images pull --snapshotter xebec 127.0.0.1:5000/busybox:v1 >/dev/null
echo "shim $(ctr run --rm --snapshotter xebec --runtime io.containerd.xebec.v2 127.0.0.1:5000/busybox:v1 shim ls -d /bin)"
kill $tracer; wait $tracer 2>/dev/null
echo "shim way $(grep -c OPEN_TREE_NAMESPACE /tmp/shim.trace) $(grep -c 'pivot_root(' /tmp/shim.trace)"

# Killed where the way differs, and refused: nothing is left, and another way is found.
bundle plain .
for call in open_tree setns mount_setattr move_mount execve; do
    strace -f -o /tmp/trace -e trace=$call -e inject=$call:signal=SIGKILL:when=2 xebec run -b plain killed </dev/null >/dev/null 2>&1
    [ -e /run/xebec/killed ] && quiet xebec delete -f killed
    echo "killed $call $(xebec list -q | grep -c killed)"
done
for errno in EINVAL EPERM ENOSYS ENOSPC; do
    strace -f -o /tmp/trace -P /tmp/plain/rootfs -e trace=open_tree -e inject=open_tree:error=$errno:when=1 \
        xebec run -b plain refused </dev/null >/tmp/refused.log 2>&1
    echo "refused $errno $? $(grep -c INJECTED /tmp/trace) $(cat /tmp/refused.log)"
done
bundle nowhere '.root.path="absent"'
echo "nowhere $(xebec run -b nowhere nowhere 2>&1 | grep -o 'invalid rootfs: stat [^ ]*: [a-z ]*')"
bundle file '.root.path="config.json"'
echo "file $(xebec run -b file file 2>&1 | grep -o 'invalid rootfs: stat [^ ]*: [a-z ]*')"

umount /srv/share/sub
sleep 1
echo "left $(diff <(mounts) <(echo "$mounts_before")) $(($(namespaces) - namespaces_before)) $(xebec list -q | wc -l)"
