# Runs in the machine of vm/lacking.rs; every line it prints is a fact that the test knows.
set -eu
image=127.0.0.1:5000/busybox:lazy
truth=/usr/bin/busybox
sum=$(sha256sum < $truth | cut -d ' ' -f 1)
# Words of the program; one bit makes a C of their B.
words=$(grep -obUam 1 'BusyBox v1' $truth | head -n 1 | cut -d : -f 1)

# A disk of its own, whose blocks can be changed below the file system.
truncate -s 96M /tmp/disk
mkfs.ext4 -q -b 4096 -O verity /tmp/disk
loop=$(losetup --find --show /tmp/disk)
mkdir -p /disk /m/fuse /m/passthrough /m/kernel
mount "$loop" /disk

xebec-snapshotter image convert oci:/srv/corpus/busybox $image >/dev/null 2>&1

trap '[ $? = 0 ] || tail -n 20 /tmp/*.log >&2' EXIT
port=9110
# The daemon of a back end, with more in its configuration.
serve() {
    port=$((port + 1))
    echo $port > /tmp/$1.port
    mount=$1 passthrough=never socket=$1
    case $1 in
        passthrough) mount=fuse passthrough=always ;;
        # The one that containerd knows.
        kernel) socket=snapshotter ;;
    esac
    cat > /tmp/$1.toml <<END
root = "/disk/$1"
address = "/run/xebec-snapshotter/$socket.sock"
mount = "$mount"
async_remove = false
[metrics]
address = "127.0.0.1:$port"
[lazy]
passthrough = "$passthrough"
keep_unused = 0
[store]
$2
END
    setsid xebec-snapshotter serve --config /tmp/$1.toml >>/tmp/$1.log 2>&1 </dev/null &
    echo $! > /tmp/$1.pid
    await ask $1 status >/dev/null 2>&1
}
stop() {
    kill "$(cat /tmp/$1.pid)"
    wait "$(cat /tmp/$1.pid)" || :
}
ask() { xebec-snapshotter $2 --config /tmp/$1.toml "${@:3}"; }
await() {
    for _ in $(seq 60); do
        "$@" && return
        sleep 1
    done
    echo "not seen: $*" >&2
    exit 1
}
metric() { curl -s "127.0.0.1:$(cat /tmp/$1.port)/metrics" | sed -n "s/^xebec_$2 //p"; }
counts() { [ "$(metric $1 $2)" -ge 1 ]; }
stored() { find /disk/$1/lazy/blobs/sha256 -path '*/obj/1'; }
same() { cmp $truth /m/$1/bin/busybox && echo "$1 $2"; }
uncached() { sync; echo 3 > /proc/sys/vm/drop_caches; }
for mode in fuse passthrough kernel; do
    serve $mode ''
    echo "$mode says $(ask $mode status | sed -n '1s/.*; //p')"
    ask $mode 'image mount' $image /m/$mode
    same $mode 'reads right while it is fetched'
done
ctr images pull --snapshotter xebec $image >/dev/null
ran=$(ctr run --rm --snapshotter xebec --runtime io.containerd.xebec.v2 $image c sha256sum /bin/busybox)
[ "${ran%% *}" = $sum ] && echo 'a container reads right'
for mode in fuse passthrough kernel; do
    await counts $mode sealed_files_total
    echo "$mode attributes $(lsattr "$(stored $mode)" | cut -d ' ' -f 1 | tr -d e-)"
    sh -c "echo more >> $(stored $mode)" 2>&1 | sed -n "s/.*: /$mode write: /p"
done
uncached
for mode in fuse passthrough kernel; do same $mode 'reads right when it is sealed'; done

# One bit of each file, on the disk below.
for mode in fuse passthrough kernel; do
    block=$(filefrag -b4096 -v "$(stored $mode)" | awk -v at=$((words / 4096)) '
        $1 ~ /^[0-9]+:$/ { gsub(/[.:]/, " "); if ($2 <= at && at <= $3) print $4 + at - $2 }')
    place=$((block * 4096 + words % 4096))
    echo "$mode was $(dd if=/tmp/disk bs=1 skip=$place count=10 status=none)"
    printf C | dd of=/tmp/disk bs=1 seek=$place conv=notrunc status=none
done
uncached
for mode in fuse passthrough kernel; do
    # What cannot be read is zeros in the copy.
    dd if=/m/$mode/bin/busybox of=/tmp/read bs=4096 conv=noerror,sync 2>/tmp/errors
    echo "$mode fails: $(sed -n "s/^dd: error reading.*: //p" /tmp/errors | sort -u)"
    { cmp -l $truth /tmp/read 2>/dev/null || :; } |
        awk -v mode=$mode '$3 == 0 { lost++ } $3 != 0 { wrong++ }
            END { print mode " loses " (lost > 0 && lost <= 131072 ? "little" : lost + 0) "; wrong bytes: " wrong + 0 }'
done
echo "the kernel names $(dmesg | grep -c 'fs-verity (loop.*FILE CORRUPTED' | sed 's/^[1-9].*/it/')"

# FUSE's daemon has noticed. Of what the kernel has read by itself nobody has; an operator removes
# the file, or the store needs room and loses what nobody has mounted.
stop fuse
serve fuse ''
uncached
same fuse 'reads right when it is fetched again'
echo "fuse refused $(metric fuse refused_files_total)"
ask fuse 'image unmount' /m/fuse
echo "fuse keeps $(stored fuse | wc -l)"

rm "$(stored passthrough)"
stop passthrough
serve passthrough ''
same passthrough 'reads right when it is fetched again'

ask kernel 'image unmount' /m/kernel
stop kernel
serve kernel 'quota = "64KiB"'
await counts kernel evictions_total
echo "kernel evicted, keeps $(stored kernel | wc -l)"
ask kernel 'image mount' $image /m/kernel
same kernel 'reads right when it is fetched again'
ask kernel 'image unmount' /m/kernel
ctr images rm --sync $image >/dev/null
echo "kernel keeps $(stored kernel | wc -l)"
