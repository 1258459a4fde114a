//! The background fill: complete in the end, out of everybody's way until then.

use super::*;
use crate::fill::pool::Class;
use crate::store::Allowance;

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
    let bench = Bench::new(config());
    let id = bench.add(&layer());
    let before = bench.requests();
    let earlier = bench.lazy().pool.disturb();
    let point = bench.lazy().mount(&[id]).unwrap();
    let small = point.path().join("small");
    // The reader's request is answered only when another one comes, and that is none of the fill's.
    bench.registry.meeting.call(2);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| fs::read(small).unwrap());
        wait_until("somebody reads", || bench.requests() > before);
        drop(earlier);
        let waited = paused(&bench, Pause::Reads);
        wait_until("it waits", || paused(&bench, Pause::Reads) > waited + 2);
        assert_eq!(fetched(&bench), 0);
        assert!(bench.registry.meeting.attend());
        assert_eq!(reader.join().unwrap(), b"small");
    });
    wait_until("it goes on afterwards", || {
        bench.lazy().background().pending == 0
    });
    assert!(fetched(&bench) > 0);
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
fn it_takes_no_room_that_others_would_have_to_make() {
    let mut bench = Bench::new(config());
    let space = Arc::clone(bench.lazy().space());
    let spare = |spare| Allowance {
        leeway: u64::MAX,
        spare,
        is_short: false,
    };
    space.allow(space.now(), spare(0));
    let id = bench.add(&layer());
    // For one piece of three.
    space.allow(space.now(), spare(3 << 19));
    let before = bench.lazy().levels().unwrap().used;
    let point = bench.lazy().mount(&[id]).unwrap();
    wait_until("it notices", || paused(&bench, Pause::Space) > 0);
    assert!(fetched(&bench) > 0, "as far as there was room");
    let stored = bench.lazy().levels().unwrap().used - before;
    assert!(stored <= 3 << 19, "{stored} bytes");
    assert!(
        fs::read(point.path().join("big")).unwrap() == noise(7, LEN),
        "who reads gets more"
    );
    bench.restart();
    bench.lazy().mount(&[id]).unwrap();
    wait_until("there is room", || bench.lazy().background().pending == 0);
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
