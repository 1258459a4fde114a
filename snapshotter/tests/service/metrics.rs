//! What Prometheus is told: each metric moves when what it counts happens, and not before.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::daemon::{Daemon, Mounted};
use crate::lazy::pull;
use crate::quota::{files, image};
use crate::registry::Image;

const QUOTA: u64 = 5 << 20;
/// By FUSE, so that the daemon sees every read; what is read ahead would be here already.
const CONFIG: &str = "mount = \"fuse\"\n[lazy]\npassthrough = \"never\"\n\
    [fill]\nbackground = true\ndelay = 3600\n\
    [store]\nquota = \"5MiB\"\n[metrics]\naddress = \"127.0.0.1:0\"\n";

/// Asks the daemon; its log has the address.
fn metrics(daemon: &Daemon) -> String {
    let log = daemon.log();
    let (_, address) = log.split_once("metrics address=").expect("it is told");
    let address = address.split_whitespace().next().unwrap();
    let mut stream = TcpStream::connect(address.trim_matches('"')).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// The sum of a metric over everything whose labels contain `label`.
fn value(shown: &str, name: &str, label: &str) -> u64 {
    let name = format!("xebec_{name}");
    let of_it = shown.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let labels = series.strip_prefix(&name)?;
        let is_it = labels.is_empty() || labels.starts_with('{');
        (is_it && labels.contains(label)).then(|| value.parse::<u64>().unwrap())
    });
    of_it.sum()
}

/// Waits until a metric is what it should become.
fn wait_for(daemon: &Daemon, name: &str, is_it: impl Fn(u64) -> bool) -> String {
    let begun = Instant::now();
    loop {
        let shown = metrics(daemon);
        if is_it(value(&shown, name, "")) {
            return shown;
        }
        assert!(begun.elapsed() < Duration::from_mins(2), "{name}\n{shown}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Turns every sixteenth KiB of a blob round, its table of contents excepted.
fn spoil(image: &Image) {
    let blob = fs::File::options().write(true).open(image.blob(0)).unwrap();
    let len = blob.metadata().unwrap().len();
    for at in (0..len - len / 8).step_by(16 << 10) {
        blob.write_all_at(&[0x55; 64], at).unwrap();
    }
}

fn errno_of_reading(path: &Path) -> Option<i32> {
    fs::read(path).err().and_then(|error| error.raw_os_error())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_moves_with_what_it_counts() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    fs::write(&config, CONFIG).unwrap();
    let daemon = Daemon::start_with(dir, &["--config", config.to_str().unwrap()]).await;
    let mut client = daemon.client().await;
    let shown = metrics(&daemon);
    assert_eq!(value(&shown, "build_info", "version="), 1);
    assert_eq!(value(&shown, "store_quota_bytes", ""), QUOTA);
    assert_eq!(value(&shown, "cold_reads_total", ""), 0, "{shown}");

    let contents = [files(1, 4), files(2, 4)];
    let [honest, other] = [&contents[0], &contents[1]].map(|files| image(files));
    let top = pull(&mut client, "default", &honest).await;
    let mounts = client.prepare("c", &top).await.unwrap();
    let tree = Mounted::new(daemon.dir(), &mounts[0]);
    let first = tree.path().join("large0");
    assert!(fs::read(&first).unwrap() == contents[0][0].1);
    let shown = metrics(&daemon);
    assert!(value(&shown, "cold_reads_total", "layer=") > 0, "{shown}");
    let fetched = value(&shown, "fetched_bytes_total", "for=\"read\"");
    assert!(fetched > 0 && fetched <= honest.served(), "{shown}");
    let requests = value(&shown, "fetch_seconds_count", "for=\"read\"");
    assert!(requests > 0, "{shown}");
    assert_eq!(
        value(&shown, "fetch_seconds_bucket", "for=\"read\",le=\"+Inf\""),
        requests
    );
    assert!(value(&shown, "store_bytes", "") >= 1 << 20, "{shown}");
    assert!(value(&shown, "store_free_bytes", "") > 0, "{shown}");
    assert_eq!(value(&shown, "background_pending", ""), 1, "{shown}");
    assert_eq!(value(&shown, "verification_failures_total", ""), 0);
    assert_eq!(value(&shown, "failed_requests_total", ""), 0);
    assert!(shown.contains("xebec_registry_state{host="), "{shown}");

    // Not from the kernel's cache, but from the store.
    let local = value(&shown, "local_reads_total", "");
    let file = fs::File::open(&first).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    assert!(fs::read(&first).unwrap() == contents[0][0].1);
    assert!(value(&metrics(&daemon), "local_reads_total", "") > local);

    spoil(&honest);
    let refused = (1..4).map(|n| errno_of_reading(&tree.path().join(format!("large{n}"))));
    assert!(refused.into_iter().any(|errno| errno == Some(5)));
    wait_for(&daemon, "verification_failures_total", |count| count > 0);
    fs::remove_file(honest.blob(0)).unwrap();
    assert_eq!(errno_of_reading(&tree.path().join("small79")), Some(5));
    wait_for(&daemon, "failed_requests_total", |count| count > 0);
    drop((file, tree));
    client.remove("c").await.unwrap();

    let top = pull(&mut client, "default", &other).await;
    let mounts = client.prepare("c", &top).await.unwrap();
    let tree = Mounted::new(daemon.dir(), &mounts[0]);
    for (name, content) in &contents[1] {
        assert!(fs::read(tree.path().join(name)).unwrap() == *content);
    }
    let shown = wait_for(&daemon, "evictions_total", |count| count > 0);
    assert!(value(&shown, "store_bytes", "") <= QUOTA, "{shown}");
    assert!(value(&shown, "evicted_bytes_total", "") >= 1 << 20);
}

/// The same contents by a mirror that is asked first, and by their registry.
fn with_mirror(dir: &Path, files: &[(String, Vec<u8>)]) -> [Image; 2] {
    let [mirror, registry] = [image(files), image(files)];
    let hosts = dir.join(format!("hosts/{}", registry.address));
    fs::create_dir_all(&hosts).unwrap();
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        registry.address, mirror.address
    );
    fs::write(hosts.join("hosts.toml"), text).unwrap();
    [mirror, registry]
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_of_hosts_that_send_wrong_bytes_or_nothing_and_of_a_fill_that_waits() {
    let dir = tempfile::tempdir().unwrap();
    let contents = files(3, 8);
    let [mirror, registry] = with_mirror(dir.path(), &contents);
    let text = format!(
        "mount = \"fuse\"\n[fill]\nbackground = true\ndelay = 0\nrate = 1\n\
         [registry]\nhosts_dir = \"{}\"\npatience = 1\n[metrics]\naddress = \"127.0.0.1:0\"\n",
        dir.path().join("hosts").display()
    );
    let config = dir.path().join("config.toml");
    fs::write(&config, text).unwrap();
    let daemon = Daemon::start_with(dir, &["--config", config.to_str().unwrap()]).await;
    let mut client = daemon.client().await;
    let top = pull(&mut client, "default", &registry).await;
    spoil(&mirror);
    let shown = metrics(&daemon);
    for name in [
        "registry_failures",
        "registry_wrong_bytes_total",
        "background_pauses_total",
    ] {
        assert_eq!(value(&shown, name, ""), 0, "{shown}");
    }
    let mounts = client.prepare("c", &top).await.unwrap();
    let tree = Mounted::new(daemon.dir(), &mounts[0]);
    assert!(fs::read(tree.path().join("large0")).unwrap() == contents[0].1);
    let shown = wait_for(&daemon, "registry_wrong_bytes_total", |count| count > 0);
    let of_registry = format!("host=\"{}\"", registry.address);
    assert_eq!(
        value(&shown, "registry_wrong_bytes_total", &of_registry),
        0,
        "{shown}"
    );

    for host in [&mirror, &registry] {
        host.hang_up();
    }
    wait_for(&daemon, "registry_failures", |count| count > 0);
    let begun = Instant::now();
    while value(
        &metrics(&daemon),
        "background_pauses_total",
        "for=\"registry\"",
    ) == 0
    {
        assert!(
            begun.elapsed() < Duration::from_mins(2),
            "{}",
            metrics(&daemon)
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(tree);
    client.remove("c").await.unwrap();
}
