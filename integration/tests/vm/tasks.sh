# Runs in the machine of vm/tasks.rs; every line it prints is a fact that the test knows.
set -u
cd /tmp

skopeo copy -q --dest-tls-verify=false oci:/srv/corpus/busybox:busybox docker://127.0.0.1:5000/busybox:v1
image=127.0.0.1:5000/busybox:v1
ctr images pull $image >/dev/null
ctr events > /tmp/events & events=$!

for name in xebec runc; do
    ctr run -d --runtime io.containerd.$name.v2 --memory-limit 67108864 --cpu-shares 512 \
        $image $name sh -c 'while :; do sleep 1000; done & dd if=/dev/zero of=/file bs=1M count=8 2>/dev/null; wait'
    while [ "$(ctr tasks exec --exec-id look $name stat -c %s /file 2>/dev/null)" != 8388608 ]; do
        sleep 0.5
    done
    echo "metrics-$name $(ctr tasks metrics --format json $name | jq -c .)"

    ctr tasks exec --exec-id greedy $name tail /dev/zero
    echo "$name greedy exec $?"
    echo "$name is $(ctr tasks ls | awk -v name=$name '$1 == name {print $3}')"
    echo "$name kills $(ctr tasks metrics --format json $name | jq .memory_events.oom_kill)"
    [ $name = runc ] || ctr containers checkpoint --rw --task xebec ckpt/xebec:1 >/dev/null
    ctr tasks kill --signal KILL $name
    while ctr tasks ls | grep -q "^$name .*RUNNING"; do sleep 0.5; done
    ctr tasks rm $name >/dev/null 2>&1
    ctr containers rm $name
done

# In the cgroup that the first one had.
ctr containers restore --rw --live restored ckpt/xebec:1
ctr tasks exec --exec-id greedy restored tail /dev/zero
echo "restored greedy exec $?"
echo "restored is $(ctr tasks ls | awk '$1 == "restored" {print $3}')"
echo "restored kills $(ctr tasks metrics --format json restored | jq .memory_events.oom_kill)"
ctr tasks rm --force restored >/dev/null 2>&1
ctr containers rm restored

sleep 2
kill $events
for name in xebec restored runc; do
    grep -F "\"container_id\":\"$name\"" /tmp/events | grep -o '/tasks/\(oom\|exit\).*' |
        grep -o '^/tasks/[a-z]*\|"id":"[a-z]*"' | tr '\n' ' ' | sed "s/^/events-$name /"
    echo
done
exit 0
