# The images that containerd's suites of tests ask for, made of the corpus.
set -e
cd /tmp
put() { skopeo copy -q --dest-tls-verify=false "oci:$1" "docker://127.0.0.1:5000/$2"; }
put /srv/corpus/pause:pause pause:v1
put /srv/corpus/pause:pause pause:3.10
put /srv/corpus/nginx:nginx nginx:1.27.0

mkdir -p base-files/etc base-files/run
printf '%s\n' root:x:0:0::/root:/bin/sh daemon:x:1:1::/:/bin/false bin:x:2:2::/bin:/bin/false \
    sys:x:3:3::/dev:/bin/false www-data:x:33:33::/:/bin/false nobody:x:65534:65534::/:/bin/false > base-files/etc/passwd
printf '%s\n' root:x:0: daemon:x:1: bin:x:2: sys:x:3: wheel:x:10:root www-data:x:33: nogroup:x:65534: > base-files/etc/group
skopeo copy -q oci:/srv/corpus/busybox:busybox oci:base:x
umoci insert --image base:x base-files/ /
put base:x busybox:1.36
put base:x alpine:3.14.0

# An image with one more layer, the files in $1, and these volumes.
volumes() {
    files=$1 name=$2; shift 2
    rm -rf image; cp -a base image
    umoci insert --image image:x "$files/" /
    for volume in "$@"; do umoci config --image image:x --config.volume="$volume"; done
    put image:x "$name:2.1"; put image:x "$name:2.2"
}
mkdir -p copied/test_dir copied/C:/weird_test_dir copied/:colon_prefixed owned/test_dir
echo test_content | tee copied/test_dir/test_file copied/C:/weird_test_dir/weird_test_file \
    > copied/:colon_prefixed/colon_prefixed_file
chown 65534:65534 owned/test_dir
volumes copied volume-copy-up /test_dir C:/weird_test_dir /:colon_prefixed
volumes owned volume-ownership /test_dir
# Where the suite looks whether ID mappings are possible.
mkdir -p /var/lib/containerd-test
