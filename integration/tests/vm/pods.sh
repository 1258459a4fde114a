# Runs in the machine of vm/pods.rs; every line it prints is a fact that the test knows.
set -u
cd /tmp

for image in pause busybox; do
    skopeo copy -q --dest-tls-verify=false oci:/srv/corpus/$image:$image docker://127.0.0.1:5000/$image:v1
done
# As a kubelet has it: a slice for the pod, whose limit is the sum of its containers'.
slice=kubepods-burstable-pod1.slice
mkdir -p /run/systemd/system
printf '[Slice]\nMemoryMax=134217728\n' > /run/systemd/system/$slice
systemctl daemon-reload && systemctl start $slice
top=/sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice/$slice

is() { systemctl show $1 -p $2 --value; }
for handler in xebec xebec-as-runc runc; do
    coproc POD { exec /job/integration pod --handler $handler --cgroup-parent $slice --memory 67108864 \
        127.0.0.1:5000/busybox:v1 sleep 1000 2>&1; }
    client=$POD_PID input=${POD[1]}
    exec {output}<&${POD[0]}
    read -r word pod <&$output; [ "$word" = pod ] || echo "$handler FAILED: $word $pod"
    read -r word id <&$output; [ "$word" = container ] || echo "$handler FAILED: $word $id"
    scope=cri-containerd-$id.scope sandbox=cri-containerd-$pod.scope
    echo "$handler units $(is $scope ActiveState) $(is $scope Slice) $(is $sandbox ActiveState) $(is $sandbox Slice)"
    echo "$handler limits $(is $scope MemoryMax) $(cat $top/$scope/memory.max) $(cat $top/memory.max)"
    exec {input}>&-
    echo "$handler $(cat <&$output)"
    exec {output}<&-
    wait $client
    echo "$handler stopped and removed $?"

    # A process in the container wants more than there is, then the container itself does.
    pod="/job/integration pod --handler $handler --cgroup-parent $slice --memory 67108864"
    echo 'tail /dev/zero' | $pod 127.0.0.1:5000/busybox:v1 sleep 1000 |
        sed -n "s/^exit/$handler greedy-exec/p"
    sleep 10 | $pod 127.0.0.1:5000/busybox:v1 tail /dev/zero | sed -n "s/^ended/$handler greedy/p"
done
exit 0
