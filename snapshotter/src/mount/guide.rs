//! What is fetched before anyone asks for it: by a profile of this node's own, by one that lies
//! beside the image in its registry, or as the image's author has marked it.
//!
//! The registry is asked once an image, beside everything else that a pull does; nothing ever waits
//! for its answer. Landmarks wait for it until the image is mounted at the latest.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::layers::{Layers, lock};
use super::{LayerId, LayerSource, LazyConfig};
use crate::digest::Digest;
use crate::error::Result;
use crate::fetch::ImageRef;
use crate::fill::pool::Pool;
use crate::fill::{Filler, Plan};
use crate::profile::{Profile, Recorder, remote};
use crate::timeline::What;

/// How long after the first layer of an image was asked for its plan is kept for the others, and
/// what its registry has said.
const LIFETIME: Duration = Duration::from_mins(10);
/// Most images whose registries are asked at a time; further ones do without.
const MAX_SCOUTS: usize = 64;

/// Begins to fetch what containers will read.
pub(super) struct Guide {
    layers: Arc<Layers>,
    pool: Arc<Pool>,
    recorder: Arc<Recorder>,
    /// Most packed bytes fetched of a layer.
    limit: u64,
    pulls: bool,
    pushes: bool,
    /// What is being fetched by profile for images that are not mounted yet.
    plans: Mutex<HashMap<Vec<Digest>, Begun<Arc<Plan>>>>,
    /// Images whose registry is, or was, asked for a profile.
    scouts: Mutex<HashMap<Vec<Digest>, Begun<Scout>>>,
}

struct Begun<T> {
    since: Instant,
    what: T,
}

impl<T> Begun<T> {
    fn now(what: T) -> Self {
        let since = Instant::now();
        Self { since, what }
    }

    fn is_fresh(&self) -> bool {
        self.since.elapsed() < LIFETIME
    }
}

/// The search for a profile.
enum Scout {
    /// These layers wait for what it finds.
    Looking(Vec<Arc<Filler>>),
    Over,
}

impl Guide {
    pub(super) fn new(
        layers: &Arc<Layers>,
        pool: Arc<Pool>,
        recorder: Arc<Recorder>,
        config: &LazyConfig,
    ) -> Arc<Self> {
        let follows = config.profile_seconds > 0;
        let guide = Arc::new(Self {
            layers: Arc::clone(layers),
            pool,
            recorder,
            limit: config.prefetch_limit,
            pulls: follows && config.profile_pull,
            pushes: follows && config.profile_push,
            plans: Mutex::default(),
            scouts: Mutex::default(),
        });
        let weak = Arc::downgrade(&guide);
        // The layers are the only ones to ask, and are told once.
        let _ = layers.opened_ahead.set(Box::new(move |source, filler| {
            if let Some(guide) = weak.upgrade() {
                guide.fetch_early(&source.chain, filler);
            }
        }));
        guide
    }

    /// Begins to fetch what a profile names of a layer that nobody has asked for yet. All else waits
    /// until it is.
    fn fetch_early(&self, chain: &[Digest], filler: &Arc<Filler>) {
        if let Some(plan) = self.plan(chain) {
            plan.begin(filler, self.limit);
        }
    }

    /// Begins to look for a profile in the registry, unless there is one here or that was done.
    pub(super) fn scout(self: &Arc<Self>, source: &LayerSource) {
        let chain = &source.chain;
        if !self.pulls || chain.is_empty() || self.plan(chain).is_some() || !self.begin(chain) {
            return;
        }
        let (guide, source) = (Arc::clone(self), source.clone());
        let thread = std::thread::Builder::new().name("xebec-scout".to_owned());
        let spawned = thread.spawn(move || {
            let found = guide.look(&source).unwrap_or_else(|error| {
                tracing::debug!(image = %source.image, %error, "not asked for a profile");
                None
            });
            guide.found(&source, found);
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread to look for a profile");
            lock(&self.scouts).remove(chain);
        }
    }

    /// Whether nobody has looked for a profile of the chain lately; it is done from now on.
    fn begin(&self, chain: &[Digest]) -> bool {
        let mut scouts = lock(&self.scouts);
        scouts.retain(|_, scout| scout.is_fresh());
        if scouts.contains_key(chain) || scouts.len() >= MAX_SCOUTS {
            return false;
        }
        let looking = Scout::Looking(Vec::new());
        scouts.insert(chain.to_vec(), Begun::now(looking));
        true
    }

    fn look(&self, source: &LayerSource) -> Result<Option<Profile>> {
        let image = self.layers.image(&source.image, source.manifest)?;
        let begun = Instant::now();
        let found = remote::find(&image);
        let reads = |found: &Option<Profile>| Some(found.as_ref()?.reads().len());
        let reads = found.as_ref().ok().and_then(reads);
        source.note(begun, What::Profile { reads });
        found
    }

    /// Begins with what was found for the layers that wait, and keeps it for the others.
    fn found(&self, source: &LayerSource, found: Option<Profile>) {
        let plan = found.map(|profile| {
            tracing::info!(
                image = %source.image, runs = profile.runs(), reads = profile.reads().len(),
                "found a profile in the registry"
            );
            self.recorder.keep_foreign(profile.clone());
            self.remember(source.chain.clone(), profile)
        });
        let waiting = match lock(&self.scouts).get_mut(&source.chain) {
            Some(scout) => std::mem::replace(&mut scout.what, Scout::Over),
            None => Scout::Over,
        };
        let Scout::Looking(waiting) = waiting else {
            return;
        };
        for filler in waiting {
            self.fetch(plan.as_ref(), &filler);
        }
    }

    fn fetch(&self, plan: Option<&Arc<Plan>>, filler: &Arc<Filler>) {
        match plan {
            Some(plan) => plan.begin(filler, self.limit),
            None => filler.prefetch(self.limit),
        }
    }

    /// Begins to fetch what a layer's containers will read, or has it wait for the registry's word.
    pub(super) fn fetch_ahead(&self, chain: &[Digest], filler: &Arc<Filler>) {
        let mut plan = self.plan(chain);
        if plan.is_none() {
            if let Some(scout) = lock(&self.scouts).get_mut(chain)
                && let Scout::Looking(waiting) = &mut scout.what
            {
                waiting.push(Arc::clone(filler));
                return;
            }
            // It may have been found in between.
            plan = self.plan(chain);
        }
        self.fetch(plan.as_ref(), filler);
    }

    /// The plan by which a chain is fetched; all of its layers share one.
    fn plan(&self, chain: &[Digest]) -> Option<Arc<Plan>> {
        let mut plans = lock(&self.plans);
        plans.retain(|_, plan| plan.is_fresh());
        if let Some(plan) = plans.get(chain) {
            return Some(Arc::clone(&plan.what));
        }
        drop(plans);
        let profile = self.recorder.profile(chain)?;
        Some(self.remember(chain.to_vec(), profile))
    }

    fn remember(&self, chain: Vec<Digest>, profile: Profile) -> Arc<Plan> {
        let mut plans = lock(&self.plans);
        let begun = plans
            .entry(chain)
            .or_insert_with(|| Begun::now(Plan::new(profile, Arc::clone(&self.pool))));
        Arc::clone(&begun.what)
    }

    /// Fetches what the profile of a chain that is being mounted says, as far as that has not
    /// begun, and records what is read this time.
    pub(super) fn accompany(&self, chain: &[LayerId], fillers: &[Arc<Filler>]) {
        let digests: Vec<Digest> = chain.iter().map(|layer| *layer.digest()).collect();
        let plan = self.plan(&digests);
        let is_first = plan.is_none();
        if let Some(plan) = plan {
            for filler in fillers {
                plan.begin(filler, self.limit);
            }
            lock(&self.plans).remove(&digests);
        } else {
            self.hurry(&digests);
        }
        if let Some(recording) = self.recorder.begin(digests, is_first) {
            for (number, filler) in fillers.iter().enumerate() {
                filler.record(Arc::clone(&recording), number);
            }
        }
    }

    /// Has layers that wait for a registry's word begin without it; it still counts when it comes.
    fn hurry(&self, chain: &[Digest]) {
        let waiting = match lock(&self.scouts).get(chain) {
            Some(Begun {
                what: Scout::Looking(waiting),
                ..
            }) => waiting.clone(),
            _ => return,
        };
        for filler in waiting {
            filler.prefetch(self.limit);
        }
    }

    /// Puts profiles that have just been recorded beside their images, where that is wanted.
    pub(super) fn publish(self: &Arc<Self>, recorded: Vec<Vec<Digest>>) {
        if !self.pushes || recorded.is_empty() {
            return;
        }
        let guide = Arc::clone(self);
        let thread = std::thread::Builder::new().name("xebec-publish".to_owned());
        let spawned = thread.spawn(move || {
            for chain in recorded {
                match guide.push(&chain) {
                    Ok(Some(digest)) => tracing::info!(%digest, "pushed a profile"),
                    Ok(None) => {}
                    Err(error) => tracing::warn!(%error, "a profile is not pushed"),
                }
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread to push profiles");
        }
    }

    fn push(&self, chain: &[Digest]) -> Result<Option<Digest>> {
        let (Some(profile), Some(top)) = (self.recorder.profile(chain), chain.last()) else {
            return Ok(None);
        };
        let image = ImageRef::parse(&self.layers.store.origin(top)?.image)?;
        let image = self.layers.image(&image, None)?;
        remote::push(self.layers.registry(), &image, profile)
    }
}
