//! Layers that are opened before they are asked for.

use super::*;
use crate::fill::pool::Class;
use crate::profile::{Profile, Profiles};

/// Three layers, bottom first, of which the manifest says that they are lazy.
fn image(bench: &Bench) -> Vec<LayerSource> {
    let layers = (0..3).map(|number| {
        let mut sample = Sample::default();
        sample.file("number", &[number], 100);
        sample.finish()
    });
    let mut sources: Vec<_> = layers.map(|layer| bench.push(&layer)).collect();
    sources.sort_unstable_by_key(|source| source.layer);
    let mut known = bench.registry.annotations.lock().unwrap();
    known.extend(
        sources
            .iter()
            .map(|source| (source.layer, source.annotations.clone())),
    );
    drop(known);
    sources
}

#[test]
fn the_first_layer_that_is_asked_for_opens_all_above_it_at_the_same_time() {
    let bench = Bench::new(LazyConfig::default());
    let sources = image(&bench);
    bench.registry.meeting.call(3);
    for source in &sources {
        assert!(bench.lazy().add_layer(source).unwrap().is_some());
    }
    assert_eq!(bench.requests(), 3, "each once, and none alone");
}

#[test]
fn what_was_opened_ahead_is_kept_for_the_pull_and_what_cannot_be_is_left_to_containerd() {
    let bench = Bench::new(LazyConfig::default());
    let mut sources = image(&bench);
    // The topmost one has another table of contents than the manifest says.
    let top = &mut sources[2];
    let other = Digest::of(b"another TOC").to_string();
    top.annotations
        .insert(TOC_DIGEST_ANNOTATION.to_owned(), other);
    let mut known = bench.registry.annotations.lock().unwrap();
    known.insert(top.layer, top.annotations.clone());
    drop(known);
    let first = bench.lazy().add_layer(&sources[0]).unwrap().unwrap();
    let second = LayerId::from(sources[1].layer);
    let opened = || bench.lazy().usage(second).is_ok();
    let begun = std::time::Instant::now();
    while !opened() {
        assert!(begun.elapsed().as_secs() < 20, "not opened ahead");
        std::thread::yield_now();
    }
    // Nobody who sweeps unused layers sees it before its turn.
    assert_eq!(bench.lazy().layers().unwrap(), [first]);
    assert!(bench.lazy().add_layer(&sources[1]).unwrap().is_some());
    assert!(bench.lazy().layers().unwrap().contains(&second));
    assert_eq!(bench.lazy().add_layer(&sources[2]).unwrap(), None);
}

#[test]
fn what_a_profile_names_of_a_layer_is_fetched_before_the_layer_is_asked_for() {
    let bench = Bench::new(LazyConfig::default());
    let mut sources = image(&bench);
    let chain: Vec<_> = sources.iter().map(|source| source.layer).collect();
    for source in &mut sources {
        source.chain.clone_from(&chain);
    }
    let of_the_top = vec![(2, 0, sources[2].size, 0).into()];
    let profile = Profile::new(chain, of_the_top);
    Profiles::below(bench.root.path()).merge(profile).unwrap();
    bench.lazy().add_layer(&sources[0]).unwrap().unwrap();
    wait_until("the profile is followed", || {
        let layers = bench.lazy().insight();
        let mut counts = layers.iter().map(|layer| &layer.counts);
        counts.any(|counts| counts.fetched_for(Class::Profile) > 0)
    });
}
