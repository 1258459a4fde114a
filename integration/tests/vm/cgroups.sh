# Runs in the machine of vm/cgroups.rs; every line it prints is a fact that the test knows.
set -u
cd /tmp

# bundle DIR FILTER: a bundle whose config.json is changed by a filter of jq.
bundle() {
    mkdir -p $1/rootfs/{bin,proc,sys,dev,etc,tmp}
    cp /usr/bin/busybox $1/rootfs/bin/
    for applet in sh sleep true cat tail mkdir; do ln -sf busybox $1/rootfs/bin/$applet; done
    (cd $1 && rm -f config.json && xebec spec ${3:-} &&
        jq '.process.terminal=false | .root.readonly=false | .process.args=["sleep","1000"] |'"$2" \
            config.json > new && mv new config.json)
}
quiet() { "$@" </dev/null >/tmp/quiet.log 2>&1 || { echo "FAILED: $*: $(cat /tmp/quiet.log)"; return 1; }; }
# show WHO DIR FILE...: the contents of cgroup files.
show() { who=$1 dir=$2; shift 2; for file; do echo "$who $file $(cat $dir/$file)"; done; }

disk=$(cat /sys/block/vda/dev)
limits='.linux.resources = {
  "devices": [{"allow": false, "access": "rwm"},
              {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}],
  "memory": {"limit": 67108864, "swap": 100663296, "reservation": 16777216},
  "cpu": {"shares": 2048, "quota": 40000, "period": 200000, "burst": 1000, "cpus": "0-1", "mems": "0"},
  "pids": {"limit": 50}, "blockIO": {"weight": 500},
  "hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}],
  "unified": {"memory.high": "62914560", "memory.oom.group": "1", "cgroup.max.depth": "3"}}'
throttle='.linux.resources.blockIO += {
  "throttleReadBpsDevice": [{"major": '${disk%:*}', "minor": '${disk#*:}', "rate": 1048576}],
  "throttleWriteIOPSDevice": [{"major": '${disk%:*}', "minor": '${disk#*:}', "rate": 100}]}'

# By the file system.
cg=/sys/fs/cgroup/xebec-test/fs
bundle fs ".linux.cgroupsPath=\"/xebec-test/fs\" | $limits | $throttle"
quiet xebec run -d -b fs fs
show fs $cg memory.max memory.swap.max memory.low memory.high memory.oom.group cpu.weight cpu.max \
    cpu.max.burst cpuset.cpus cpuset.mems pids.max io.weight hugetlb.2MB.max hugetlb.2MB.rsvd.max \
    cgroup.max.depth
echo "fs io.max $(sed "s/^$disk //" $cg/io.max)"
bundle rdma '.linux.resources.rdma = {"none": {"hcaHandles": 3}}'
echo "fs unknown-device $(xebec run -b rdma rdma 2>&1 | grep -o 'linux.resources.rdma.none.')"
bundle runc ".linux.cgroupsPath=\"/xebec-test/runc\" | $limits"
quiet runc run -d -b runc theirs
echo "stats-xebec $(xebec events --stats fs)"
echo "stats-runc $(runc events --stats theirs)"
paths() { jq -c '[paths | map(tostring) | join(".")] | map(select(startswith("data.memory.raw"))) | sort'; }
[ "$(xebec events --stats fs | paths)" = "$(runc events --stats theirs | paths)" ]
echo "fs same-members $([ $? = 0 ] && echo true)"
runc delete -f theirs

update() { quiet xebec update "$@" fs; }
value() { cat $cg/$1; }
update --memory 128M --memory-swap 192M; echo "update memory+swap $(value memory.max) $(value memory.swap.max)"
update --memory-swap 160M; echo "update swap $(value memory.max) $(value memory.swap.max)"
update --memory-swap -1; echo "update swap-unlimited $(value memory.swap.max)"
update --memory-reservation 8M; echo "update reservation $(value memory.low)"
update --cpu-quota 50000; echo "update quota $(value cpu.max)"
update --cpu-period 100000; echo "update period $(value cpu.max)"
update --cpu-burst 2000; echo "update burst $(value cpu.max.burst)"
update --cpu-share 512; echo "update shares $(value cpu.weight)"
update --cpu-idle 1; echo "update idle $(value cpu.idle)"
update --cpu-idle 0
update --cpuset-cpus 1; echo "update cpus $(value cpuset.cpus)"
update --cpuset-mems 0; echo "update mems $(value cpuset.mems)"
update --pids-limit 60; echo "update pids $(value pids.max)"
update --pids-limit -1; echo "update pids-unlimited $(value pids.max)"
update --blkio-weight 1000; echo "update weight $(value io.weight)"
echo '{"memory": {"limit": 1048576000}}' | xebec update -r - fs; echo "update file $(value memory.max)"
xebec update --kernel-memory 1M fs 2>&1 | grep -q 'kernel-memory is ignored' && echo "update kernel-memory warned"
echo '{"memory": {"limit": 4096, "checkBeforeUpdate": true}}' | xebec update -r - fs 2>&1 |
    grep -q 'rejecting memory limit 4096 <= usage' && echo "update below-use refused"
update --memory -1; echo "update unlimited $(value memory.max) $(value memory.swap.max)"
# An update without rules leaves the device program alone.
xebec exec fs sh -c ': < /dev/null' 2>/dev/null; null=$?
xebec exec fs sh -c 'busybox mknod /tmp/kmsg c 1 11 && : < /tmp/kmsg' 2>/dev/null; echo "update devices $null $?"
xebec delete -f fs

# An out-of-memory kill is told, and the stream ends with the container. Every process of the group
# goes: the shell would say that it lived on.
bundle oom '.linux.cgroupsPath="/xebec-test/oom" | .linux.resources = {"memory": {"limit": 16777216, "swap": 16777216},
  "unified": {"memory.oom.group": "1"}} | .process.args=["sh","-c","sleep 4; tail /dev/zero; echo lives >&2; sleep 9"]'
xebec run -d -b oom oom </dev/null >/tmp/oom.out 2>&1
xebec events --interval 100s oom > /tmp/events; ended=$?
echo "events $(jq -r .type /tmp/events | sort -u)"
echo "events ended $ended"
grep -q lives /tmp/oom.out || echo "oom.group all"
xebec delete -f oom

# Below the container's cgroup, and after its processes have moved there.
bundle sub '.linux.cgroupsPath="/xebec-test/sub" | .process.args=["sleep","1000"]'
quiet xebec run -d -b sub sub
mkdir /sys/fs/cgroup/xebec-test/sub/lower
where=$(xebec exec --cgroup lower sub sh -c 'cat /proc/self/cgroup'); echo "sub $? ${where#0::}"
xebec exec --cgroup ../sub sub true 2>&1 | grep -q 'not a sub cgroup path' && echo "sub outside refused"
mkdir /sys/fs/cgroup/xebec-test/sub/init
cat /sys/fs/cgroup/xebec-test/sub/cgroup.procs > /sys/fs/cgroup/xebec-test/sub/init/cgroup.procs
echo +pids > /sys/fs/cgroup/xebec-test/sub/cgroup.subtree_control
where=$(xebec exec sub cat /proc/self/cgroup); echo "non-leaf ${where#0::}"
xebec delete -f sub

# By the system's systemd.
unit=xebec-web.scope
cg=/sys/fs/cgroup/machine.slice/$unit
bundle web ".linux.cgroupsPath=\"machine.slice:xebec:web\" | $limits | .annotations = {
  \"org.systemd.property.TimeoutStopSec\": \"uint64 7\",
  \"org.systemd.property.CollectMode\": \"'inactive-or-failed'\"}"
quiet xebec --systemd-cgroup run -d -b web web
systemctl show $unit | sed 's/^/unit /' | grep -E 'unit (Slice|Delegate|Memory(Max|SwapMax|Low|High)|CPU(Weight|Quota.*)|Allowed.*|IOWeight|TasksMax|Device.*|OOMPolicy|TimeoutStopUSec|CollectMode)='
echo "scope procs $(wc -l < $cg/cgroup.procs)"
show scope $cg memory.max cpu.max.burst hugetlb.2MB.max
quiet xebec update --memory 128M --memory-swap 192M --pids-limit 60 web
echo "scope updated $(systemctl show $unit -p MemoryMax) $(cat $cg/memory.max)"
echo "scope updated $(systemctl show $unit -p TasksMax) $(cat $cg/pids.max)"
systemctl daemon-reload
echo "scope reloaded $(cat $cg/memory.max $cg/pids.max | tr '\n' ' ' | sed 's/ $//')"
xebec exec web sh -c ': < /dev/null' 2>/dev/null; null=$?
xebec exec web sh -c 'busybox mknod /tmp/kmsg c 1 11 && : < /tmp/kmsg' 2>/dev/null; echo "scope devices $null $?"
xebec pause web; echo "scope frozen $(xebec state web | jq -r .status)"; xebec resume web
echo "scope taken $(xebec --systemd-cgroup run -d -b web other 2>&1 | grep -o "container's cgroup is not empty.*found")"
mkdir -p elsewhere; sed 's/machine.slice:xebec:web/system.slice:xebec:web/' web/config.json > elsewhere/config.json; ln -sfn ../web/rootfs elsewhere/rootfs
echo "scope exists $(xebec --systemd-cgroup run -d -b elsewhere other 2>&1 | grep -o UnitExists)"
echo "scope still $(systemctl show $unit -p ActiveState --value)"
xebec kill web KILL
for i in $(seq 50); do [ -e $cg ] || break; sleep 0.1; done
echo "scope without processes $(xebec ps --format json web) $(xebec state web | jq -r .status)"
quiet xebec delete web
echo "scope deleted $(systemctl show $unit -p LoadState --value) $([ -e $cg ] || echo gone)"
echo "scope refused $(xebec --systemd-cgroup run -b fs fs 2>&1 | grep -o 'expected cgroupsPath to be of format')"

# Killed when the scope is there and init is not, and while systemd still makes it: the placeholder
# goes, and systemd's unit with it.
for call in clone3 recvfrom; do
    strace -o /dev/null -e inject=$call:signal=KILL:when=2 xebec --systemd-cgroup run -d -b web web </dev/null >/dev/null 2>&1
    echo "killed at $call $? $(ls -d /run/xebec/web)"
    quiet xebec delete -f web
    for i in $(seq 50); do [ "$(systemctl show $unit -p LoadState --value)" = not-found ] && break; sleep 0.1; done
    echo "killed at $call left $(ls -d /run/xebec/web $cg 2>/dev/null | wc -l) $(pgrep -cx xebec) $(systemctl show $unit -p LoadState --value)"
done

# One process, though systemd wants to see one before init is there.
bundle one ".linux.cgroupsPath=\"machine.slice:xebec:one\" | .linux.resources = {\"pids\": {\"limit\": 1}}"
quiet xebec --systemd-cgroup run -d -b one one
echo "one $(cat /sys/fs/cgroup/machine.slice/xebec-one.scope/pids.max) $(systemctl show xebec-one.scope -p TasksMax --value)"
quiet xebec delete -f one

# Over the bus, where systemd's own socket cannot be had.
without_private() { mount --bind /dev/null /run/systemd/private; "$@"; status=$?; umount /run/systemd/private; return $status; }
without_private quiet xebec --systemd-cgroup run -d -b web web
echo "bus $? $(systemctl show $unit -p ActiveState --value)"
without_private quiet xebec delete -f web
echo "bus $? $(systemctl show $unit -p LoadState --value)"

# By a user's systemd.
useradd -m alice; uid=$(id -u alice)
systemctl start user@$uid.service
as_alice() { runuser -u alice -- env XDG_RUNTIME_DIR=/run/user/$uid "$@"; }
in_session() { as_alice systemd-run --user --wait --pipe -q --collect "$@"; }
# Mapped to the user, as `spec --rootless` does for who calls it.
own=".linux.uidMappings[0].hostID = $uid | .linux.gidMappings[0].hostID = $(id -g alice)"
bundle mine "$own"' | .linux.resources = {"memory": {"limit": 33554432}, "pids": {"limit": 20}}' --rootless
chown -R alice mine
root=/run/user/$uid/xebec
in_session xebec --root $root --systemd-cgroup run -d -b /tmp/mine mine </dev/null >/tmp/mine.log 2>&1 || cat /tmp/mine.log
manager=/sys/fs/cgroup/user.slice/user-$uid.slice/user@$uid.service
cg=$manager/user.slice/xebec-mine.scope
[ -d $cg ] && echo "user ${cg#$manager}"
show user $cg memory.max pids.max
in_session xebec --root $root update --memory 64M mine; echo "user updated $(cat $cg/memory.max)"
in_session xebec --root $root exec mine true; echo "user exec $?"
in_session xebec --root $root delete -f mine; echo "user deleted $([ -e $cg ] || echo gone)"
# From a place that only systemd can move processes out of.
as_alice xebec --root $root --systemd-cgroup run -d -b /tmp/mine mine </dev/null >/tmp/mine.log 2>&1 || cat /tmp/mine.log
[ -d $cg ]; there=$?
as_alice xebec --root $root exec mine sh -c 'exit 7'; echo "user outside $there $?"
as_alice xebec --root $root delete -f mine
# Without permission: no cgroup where none is needed.
bundle mine "$own | del(.linux.resources)" --rootless; chown -R alice mine
as_alice xebec --root $root run -d -b /tmp/mine plain </dev/null >/tmp/mine.log 2>&1 || cat /tmp/mine.log
as_alice xebec --root $root exec plain true; echo "user no-permission $?"
as_alice xebec --root $root delete -f plain
bundle mine "$own"' | .linux.resources = {"pids": {"limit": 20}}' --rootless; chown -R alice mine
echo "user limits $(as_alice xebec --root $root run -b /tmp/mine limited 2>&1 | grep -o 'rootless needs no limits' | head -1)"

# Through containerd and the shim.
echo 'SystemdCgroup = true' > /tmp/options.toml
skopeo copy -q --dest-tls-verify=false oci:/srv/corpus/busybox:busybox docker://127.0.0.1:5000/busybox:v1
ctr images pull --snapshotter xebec 127.0.0.1:5000/busybox:v1 >/dev/null
quiet ctr run -d --snapshotter xebec --runtime io.containerd.xebec.v2 --runtime-config-path /tmp/options.toml \
    --cgroup machine.slice:xebec:ctr --memory-limit 67108864 127.0.0.1:5000/busybox:v1 ctr sleep 1000
pid=$(ctr tasks ls | awk '$1 == "ctr" {print $2}')
echo "shim $(sed -n 's/^0:://p' /proc/$pid/cgroup)"
echo "shim unit $(systemctl show xebec-ctr.scope -p ActiveState --value) $(systemctl show xebec-ctr.scope -p MemoryMax --value)"
ctr tasks exec --exec-id e ctr true; echo "shim exec $?"
ctr tasks rm -f ctr >/dev/null 2>&1; ctr containers rm ctr
for i in $(seq 50); do [ "$(systemctl show xebec-ctr.scope -p LoadState --value)" = not-found ] && break; sleep 0.1; done
echo "shim deleted $(systemctl show xebec-ctr.scope -p LoadState --value)"
exit 0
