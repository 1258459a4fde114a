//! Profiles that lie beside an image in its registry.

use std::time::Duration;

use super::*;
use crate::discover::Images;
use crate::fill::pool::Class;
use crate::profile::{MAX_LEN, Profile, remote};

fn config() -> LazyConfig {
    LazyConfig {
        // Not so long that the test would last, nor so short that a read could miss it.
        profile_seconds: 600,
        profile_push: true,
        ..LazyConfig::default()
    }
}

/// Another node, on which nothing of the registry's images is.
fn node(registry: &Arc<Registry>) -> Bench {
    let mut node = Bench::new(config());
    node.registry = Arc::clone(registry);
    node.restart();
    node
}

fn source(bench: &Bench, layer: &Finished) -> LayerSource {
    let mut source = bench.push(layer);
    source.chain = vec![source.layer];
    source
}

fn fetched_by_profile(node: &Bench) -> u64 {
    let insight = node.lazy().insight();
    let bytes = |layer: &LayerInsight| layer.counts.fetched_for(Class::Profile);
    insight.iter().map(bytes).sum()
}

#[test]
fn what_one_node_records_and_pushes_another_fetches_before_it_is_read() {
    let first = Bench::new(config());
    let image = source(&first, &base());
    let layer = first.lazy().add_layer(&image).unwrap().unwrap();
    let point = first.lazy().mount(&[layer]).unwrap();
    fs::read(point.path().join("bin/tool")).unwrap();
    first.lazy().unmount(&[layer]).unwrap();
    let pushed = || first.registry.referrers.lock().unwrap().len();
    wait_until("a profile is pushed", || pushed() == 1);

    let second = node(&first.registry);
    let layer = second.lazy().add_layer(&image).unwrap().unwrap();
    wait_until("the profile is followed", || {
        fetched_by_profile(&second) as usize > BIG
    });
    let point = second.lazy().mount(&[layer]).unwrap();
    second.registry.dead.store(true, Ordering::SeqCst);
    let read = fs::read(point.path().join("bin/tool")).unwrap();
    assert!(read == noise(1, BIG));
    second.registry.dead.store(false, Ordering::SeqCst);
    assert!(
        second.lazy().profile(&[image.layer]).is_some(),
        "it is kept"
    );
    // It read nothing that was not known, so there is nothing to push.
    second.lazy().unmount(&[layer]).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(pushed(), 1);
}

#[test]
fn a_node_may_do_without_the_registrys_profiles() {
    let mut bench = Bench::new(LazyConfig {
        profile_pull: false,
        ..config()
    });
    let image = source(&bench, &base());
    forge(&bench, &image, |profile| profile.to_json().unwrap());
    bench.restart();
    bench.lazy().add_layer(&image).unwrap().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(fetched_by_profile(&bench), 0);
    assert!(bench.lazy().profile(&[image.layer]).is_none());
}

/// Puts beside the image what `make` makes of a profile of its whole first layer.
fn forge(bench: &Bench, image: &LayerSource, make: impl Fn(&Profile) -> Vec<u8>) {
    let whole = vec![(0, 0, image.size, 0).into()];
    let json = make(&Profile::new(vec![image.layer], whole));
    let packed = zstd::bulk::compress(&json, 3).unwrap();
    let digest = Digest::of(&packed).to_string();
    put(bench, image, &packed, &digest, packed.len());
}

fn put(bench: &Bench, image: &LayerSource, packed: &[u8], digest: &str, size: usize) {
    let blobs = Arc::new(Access(Arc::clone(&bench.registry)));
    let found = Images::new(Arc::clone(&blobs) as _);
    let found = found.get(&image.image, None).unwrap();
    let annotations = [
        ("dev.xebec.profile.digest", digest.to_owned()),
        ("dev.xebec.profile.size", size.to_string()),
    ];
    let artifact = Artifact {
        artifact_type: remote::ARTIFACT_TYPE,
        subject: found.descriptor(),
        blobs: &[],
        annotations: annotations
            .map(|(key, value)| (key.to_owned(), value))
            .into(),
    };
    blobs.publish(&image.image, &artifact, &[packed]).unwrap();
    // The same content under the name that is claimed.
    let claimed = (digest.parse().unwrap(), packed.to_vec());
    bench.registry.beside.lock().unwrap().extend([claimed]);
}

#[test]
fn a_forged_profile_does_no_harm() {
    type Forge = fn(&Bench, &LayerSource);
    let forgeries: [(&str, Forge); 6] = [
        ("no document", |bench, image| {
            forge(bench, image, |_| b"{".to_vec());
        }),
        ("of other layers", |bench, image| {
            forge(bench, image, |profile| {
                let layers = vec![Digest::of(b"other")];
                let other = Profile::new(layers, profile.reads().to_vec());
                other.to_json().unwrap()
            });
        }),
        ("a bomb", |bench, image| {
            forge(bench, image, |_| vec![b' '; 4 * MAX_LEN]);
        }),
        ("other bytes than its digest says", |bench, image| {
            put(bench, image, b"xyz", &Digest::of(b"x").to_string(), 3);
        }),
        ("longer than any", |bench, image| {
            let digest = Digest::of(b"y").to_string();
            put(bench, image, b"xyz", &digest, usize::MAX);
        }),
        ("no frame", |bench, image| {
            put(bench, image, b"xyz", &Digest::of(b"xyz").to_string(), 3);
        }),
    ];
    for (what, forge) in forgeries {
        let bench = Bench::new(config());
        let image = source(&bench, &base());
        forge(&bench, &image);
        let layer = bench.lazy().add_layer(&image).unwrap().unwrap();
        let point = bench.lazy().mount(&[layer]).unwrap();
        assert!(
            fs::read(point.path().join("bin/tool")).unwrap() == noise(1, BIG),
            "{what}"
        );
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(fetched_by_profile(&bench), 0, "{what}");
        assert!(bench.lazy().profile(&[image.layer]).is_none(), "{what}");
        bench.lazy().unmount(&[layer]).unwrap();
    }
}

#[test]
fn a_profile_that_names_everything_costs_no_more_than_the_limit() {
    let limit = 200_000;
    let bench = Bench::new(LazyConfig {
        prefetch_limit: limit,
        ..config()
    });
    let image = source(&bench, &base());
    forge(&bench, &image, |profile| profile.to_json().unwrap());
    bench.lazy().add_layer(&image).unwrap().unwrap();
    wait_until("it is followed", || fetched_by_profile(&bench) > 0);
    std::thread::sleep(Duration::from_millis(200));
    let fetched = fetched_by_profile(&bench);
    assert!(fetched <= limit, "{fetched}");
}
