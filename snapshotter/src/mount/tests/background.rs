//! The background fill: complete in the end, out of everybody's way until then.

use super::*;
use crate::fill::pool::Class;

const LEN: usize = 3 << 20;

fn config() -> LazyConfig {
    LazyConfig {
        background: BackgroundConfig {
            enabled: true,
            delay: Duration::ZERO,
            rate: 0,
            keep_free: 0,
        },
        profile_seconds: 0,
        ..LazyConfig::default()
    }
}

/// A layer that takes three requests.
fn layer() -> Finished {
    let mut sample = Sample::default();
    sample.file("big", &noise(7, LEN), 100_000);
    sample.file("small", b"small", 5);
    sample.finish()
}

fn fetched(bench: &Bench) -> u64 {
    let insight = bench.lazy().insight();
    let bytes = |layer: &LayerInsight| layer.counts.fetched_for(Class::Background);
    insight.iter().map(bytes).sum()
}

fn paused(bench: &Bench, why: Pause) -> u64 {
    bench.lazy().background().pauses[why as usize]
}

#[test]
fn a_mounted_image_needs_no_registry_in_the_end_and_a_rate_is_kept() {
    let rate = 4 << 20;
    let mut config = config();
    config.background.rate = rate;
    let bench = Bench::new(config);
    let id = bench.add(&layer());
    let point = bench.lazy().mount(&[id]).unwrap();
    let begun = Instant::now();
    wait_until("it is complete", || bench.lazy().background().pending == 0);
    let least = (fetched(&bench) - (1 << 20)) as f64 / rate as f64;
    assert!(fetched(&bench) as usize > LEN, "all by the background fill");
    assert!(
        begun.elapsed().as_secs_f64() > least,
        "faster than the rate"
    );
    bench.registry.dead.store(true, Ordering::SeqCst);
    assert!(fs::read(point.path().join("big")).unwrap() == noise(7, LEN));
    bench.lazy().unmount(&[id]).unwrap();
}

#[test]
fn it_waits_while_something_else_is_fetched() {
    let mut config = config();
    config.background.delay = Duration::from_millis(300);
    let bench = Bench::new(config);
    let mut sample = Sample::default();
    for n in 0..100 {
        sample.file(&format!("f{n}"), &noise(n, 300_000), 300_000);
    }
    let id = bench.add(&sample.finish());
    let point = bench.lazy().mount(&[id]).unwrap();
    let mut beside = Vec::new();
    for n in 0..100 {
        fs::read(point.path().join(format!("f{n}"))).unwrap();
        beside.push(fetched(&bench));
        std::thread::sleep(Duration::from_millis(15));
    }
    assert!(paused(&bench, Pause::Reads) > 0);
    // The last reads find everything local, as what was read before has fetched it along.
    assert!(beside[..80].iter().all(|bytes| *bytes == 0), "{beside:?}");
    wait_until("it goes on afterwards", || {
        bench.lazy().background().pending == 0
    });
    bench.lazy().unmount(&[id]).unwrap();
}

#[test]
fn it_goes_on_after_an_outage_and_after_a_restart_where_it_was() {
    let mut config = config();
    config.background.rate = 2 << 20;
    let mut bench = Bench::new(config);
    let id = bench.add(&layer());
    bench.lazy().mount(&[id]).unwrap();
    wait_until("a part is there", || fetched(&bench) > 0);
    bench.registry.dead.store(true, Ordering::SeqCst);
    wait_until("it notices", || paused(&bench, Pause::Registry) > 0);
    let before = fetched(&bench);
    bench.restart();
    bench.registry.dead.store(false, Ordering::SeqCst);
    let point = bench.lazy().mount(&[id]).unwrap();
    wait_until("it is complete", || bench.lazy().background().pending == 0);
    let (after, all) = (fetched(&bench), bench.lazy().sizes(id).unwrap().0);
    assert!(before + after <= all, "{before} + {after} bytes of {all}");
    assert!(fs::read(point.path().join("big")).unwrap() == noise(7, LEN));
    bench.lazy().unmount(&[id]).unwrap();
}

#[test]
fn it_leaves_a_full_disk_and_unmounted_images_alone() {
    let mut full = config();
    full.background.keep_free = 100;
    let bench = Bench::new(full);
    let id = bench.add(&layer());
    let point = bench.lazy().mount(&[id]).unwrap();
    wait_until("it notices", || paused(&bench, Pause::Space) > 0);
    assert_eq!((fetched(&bench), bench.lazy().background().pending), (0, 1));
    assert!(fs::read(point.path().join("small")).unwrap() == b"small");
    bench.lazy().unmount(&[id]).unwrap();
    assert_eq!(bench.lazy().background().pending, 0);
}
